"""A long mix with kills: every request is answered correctly or fails with a typed error, and nothing is left on the machine."""

import pytest

from conftest import AUDIO_VARIANT
from security.soak import Footprint, all_dead, members, quiet_answers, run_mix, wait_for
from service.servers import children, start, stop
from videollama_client.request_state import RESTART_SECONDS

MIB = 2**20
# A dead decoupled stage's instance stays in Triton 2.51: its pool of 160 threads, three more, and 1 MiB of shared memory or more.
THREADS_OF_A_DEAD_STAGE = 165


@pytest.mark.parametrize(
    ("requests", "kills"), [(300, 5), pytest.param(2000, 40, marks=pytest.mark.slow)], ids=["300", "2000"]
)
def test_a_mix_with_kills(requests, kills, bundle_of, tmp_path):
    server = start(bundle_of(AUDIO_VARIANT), tmp_path / "log")
    try:
        quiet = quiet_answers(server)
        run_mix(server, quiet, 30, 0, seed=1)
        before = Footprint.of(server)
        tally = run_mix(server, quiet, requests, kills, seed=20261129)
        assert not tally.wrong, tally.wrong[:3]
        assert tally.asked == requests == tally.answered + sum(tally.failed.values())
        assert tally.answered > 0.6 * requests, tally.failed  # 0.7 neither leave nor have a deadline
        assert sum(tally.kills.values()) == kills
        assert quiet_answers(server) == quiet
        for gauge in ("vl2_running_requests", "vl2_num_requests_running", "vl2_num_requests_waiting"):
            assert wait_for(lambda gauge=gauge: server.metric(gauge) == 0), gauge
        lasting = sum(tally.kills[stage] for stage in ("videollama2", "tensorrt_llm")) + tally.kills["videollama2"]
        is_small = wait_for(lambda: _is_small(before, Footprint.of(server), lasting))
        assert is_small, f"{before}\n{Footprint.of(server)}\n{tally}"  # whole: pytest shortens anything but text
        seconds = tally.entry_seconds
        print(
            f"{tally.answered} answered, {dict(tally.failed)}, entry back after {[round(one, 2) for one in seconds]} s"
        )
        assert max(seconds) < RESTART_SECONDS, (
            seconds
        )  # alone 1.5 s; a caller whose request was not accepted waits so long
        everything = members(children(server.process.pid, "tritonserver")[0])
    finally:
        stop(server)
    assert wait_for(lambda: all_dead(everything))


def _is_small(before: Footprint, after: Footprint, lasting: int) -> bool:
    return (
        after.processes <= before.processes  # one of those before may have been on its way to be counted under its name
        and after.threads <= before.threads + lasting * THREADS_OF_A_DEAD_STAGE + 20
        and after.descriptors <= before.descriptors + 20 + 4 * lasting
        and after.shared_files <= before.shared_files + lasting
        and after.shared_bytes <= before.shared_bytes + (8 + 4 * lasting) * MIB
        and after.memory_bytes <= 1.1 * before.memory_bytes + (100 + 10 * lasting) * MIB
    )
