"""Three real servers behind HAProxy with deploy/haproxy.cfg: under load, one is killed, one drained, and one added."""

import re
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

from conftest import MEDIA, ROOT
from service.fleet import AskFailed, Fleet, Load, live_through_changes
from videollama_client import Client
from videollama_client.request_state import server_of
from videollama_core.protocol.errors import VideoLlamaError
from videollama_gateway.api.completions import was_cached
from videollama_server.ports import choose_ports

CLIP = (MEDIA / "plain_96x64.mp4").read_bytes()
HAPROXY = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed; make test-haproxy installs it"),
]


def configured(port: int, servers: list[tuple[str, int]]) -> str:
    """The file of deploy/ with these servers, (gRPC address, HTTP port), in place of its own."""
    text = (ROOT / "deploy/haproxy.cfg").read_text("utf-8")
    text, count = re.subn(r"bind :8001 ", f"bind 127.0.0.1:{port} ", text)
    head, own = re.subn(r"^    server .*\n", "", text, flags=re.MULTILINE)
    assert count == 1 and own == 3
    return head + "".join(
        f"    server s{place} {grpc} check port {http}\n" for place, (grpc, http) in enumerate(servers)
    )


@contextmanager
def balancing(config: str, folder):
    path = folder / "haproxy.cfg"
    path.write_text(config)
    with (folder / "haproxy.log").open("w") as log:
        process = subprocess.Popen([HAPROXY, "-db", "-f", str(path)], stdout=log, stderr=log)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def server_that_answers(address: str) -> str:
    with Client(address) as client:
        stream = client.stream("Who?", max_new_tokens=1)
        assert stream.answer
        return server_of(stream._reader.process)


@pytest.mark.timeout(900)
def test_servers_behind_haproxy_can_die_drain_and_join(bundle_of, tmp_path):
    fleet = Fleet(bundle_of("qwen2-clip-8f"), tmp_path)
    try:
        (port,) = choose_ports("127.0.0.1", {"--port": 0})
        places = [(server.grpc, int(re.search(r":(\d+)/", server.http)[1])) for server in fleet.servers]
        places.append((f"127.0.0.1:{fleet.spare[0]}", fleet.spare[1]))  # down until it is added
        with balancing(configured(port, places), tmp_path), Client(f"127.0.0.1:{port}") as client:

            def ask(media: bytes, text: str) -> tuple[bool, str]:
                stream = client.stream(text, video=media, max_new_tokens=40, temperature=0)
                try:
                    return was_cached(stream.answer), server_of(stream._reader.process)
                except VideoLlamaError as error:
                    raise AskFailed(error, server_of(stream._reader.process)) from error

            client.wait_until_ready(30)
            time.sleep(2)  # every server has been looked at
            load = Load(CLIP, ask)
            live_through_changes(load, fleet, server_that_answers(fleet.servers[0].grpc), lambda _: None)
            assert fleet.servers[3].metric("vl2_mm_cache_queries_total") > 0  # it had its share
    finally:
        fleet.close()
