"""The end of a Triton process: which stages may clean up, and which are killed."""

import sys
import time

import pytest

from videollama_server.control import Sockets
from videollama_server.machine.runtime import Runtime
from videollama_server.process import TritonProcess
from videollama_server.processes import is_alive

# A stage ignores SIGTERM, as Triton's stubs do. The server forks two and, told to end, waits for the one and for ever for the other.
SERVER = """
import os, pathlib, signal, sys, time
told, folder = [], pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
for stage in ("tensorrt_llm", "preprocess"):
    words = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    pid = os.posix_spawn(sys.executable, [*words, f"/bundle/{stage}/1/model.py"], os.environ)
    (folder / stage).write_text(str(pid))
(folder / "started").touch()
while not told:
    time.sleep(0.01)
time.sleep(0.3)
(folder / "in order").touch()
os.kill(int((folder / "tensorrt_llm").read_text()), 9)
os.waitpid(int((folder / "tensorrt_llm").read_text()), 0)
time.sleep(float(sys.argv[2]))
(folder / "whole").touch()
"""


@pytest.mark.parametrize(("has_engine", "seconds"), [(False, 600), (True, 0.5)])
def test_decoupled_stages_end_in_order_and_ordinary_ones_are_ended(has_engine, seconds, tmp_path):
    runtime = Runtime()
    try:
        triton = TritonProcess(Sockets(runtime.folder), tmp_path / "log", runtime, has_engine)
        triton.launch([sys.executable, "-c", SERVER, str(tmp_path), str(seconds)], {})
        while not (tmp_path / "started").exists():
            assert triton.is_running(), (tmp_path / "log").read_text()
            time.sleep(0.01)
        triton.end()
        assert (tmp_path / "in order").exists() and (tmp_path / "whole").exists() == has_engine
        for stage in ("tensorrt_llm", "preprocess"):
            assert not is_alive(int((tmp_path / stage).read_text())), stage
    finally:
        runtime.remove()
