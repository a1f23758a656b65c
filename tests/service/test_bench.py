"""`vl2 bench` against a real server."""

import json
import subprocess

from conftest import MEDIA
from service.servers import vl2

VARIANT = "qwen2-clip-8f"
SHORT = ("--seconds", 2, "--warmup", 0, "--max-new-tokens", 4, "--media", MEDIA / "plain_96x64.mp4")


def bench(address: str, out, *words: object) -> subprocess.CompletedProcess[str]:
    command = vl2("bench", "--url", address, *SHORT, "--out", out, *words)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=None)


def test_load_on_a_server(server_of, tmp_path):
    """Closed loop, then open loop compared with the first run: each repeated medium hit the server's cache."""
    address = server_of(VARIANT).grpc
    done = bench(address, tmp_path / "closed", "--concurrency", "1,2", "--repeat", 0.5, "--mix", "video=2,text=1")
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "closed/bench.json").read_text("utf-8"))
    assert [level["load"]["concurrency"] for level in run["levels"]] == [1, 2]
    first = run["levels"][0]
    assert first["answered"] == first["requests"] > 3 and not first["errors"]
    assert first["cache"]["hits"] == first["cache"]["repeated"] < first["cache"]["with_media"]
    assert {"preprocess", "encoder", "prefill"} <= set(first["stage_milliseconds"])
    assert first["frames_per_second"] > 0
    for name in ("latency.png", "waterfall.png"):
        assert (tmp_path / "closed" / name).stat().st_size > 5000
    done = bench(address, tmp_path / "open", "--rate", 4, "--compare", tmp_path / "closed/bench.json")
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "open/bench.json").read_text("utf-8"))
    level = run["levels"][0]
    assert level["load"]["rate"] == 4 and 1 <= level["answered"] <= 20 and level["cache"]["hits"] == 0


def test_invalid_options_give_one_line(tmp_path):
    done = bench("127.0.0.1:1", tmp_path, "--mix", "film=1")
    assert done.returncode == 2 and done.stderr.startswith("vl2: InvalidRequest: --mix") and not done.stdout
