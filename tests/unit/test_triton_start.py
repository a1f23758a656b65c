"""A Triton that is killed by a signal, or that hangs while it starts or reloads a stage, is launched again."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from videollama_core.protocol.errors import ArtifactMismatch, ServerFailed
from videollama_server import installation, process
from videollama_server.process import _ATTEMPTS, TritonProcess, _Progress


class Started(TritonProcess):
    """Its processes end as scripted, and the last one becomes ready."""

    def __init__(self, ends: list[int]) -> None:
        self._ends, self.launched, self.ended = ends, 0, 0
        self._process = None

    def launch(self, command, environment) -> None:
        self._process = SimpleNamespace(poll=lambda code=self._ends[self.launched]: code, wait=lambda: None)
        self._process.wait = self._process.poll
        self.launched += 1

    def wait_until_ready(self, seconds) -> None:
        if self._process.poll() is not None:
            raise ServerFailed("it ended")

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(
    ("ends", "launched", "fails"),
    [
        ([None], 1, False),
        ([-signal.SIGABRT, None], 2, False),
        ([-signal.SIGABRT] * _ATTEMPTS, _ATTEMPTS, True),
        ([1], 1, True),  # a stage that does not load: again would be the same
        ([-signal.SIGKILL, None], 2, False),  # it had begun to answer, say, before it was seen to be ready
    ],
)
def test_triton_is_launched_again_after_a_signal_ended_it(ends, launched, fails):
    triton, began = Started(ends), []
    try:
        triton.start([sys.executable], {}, 1, lambda: began.append(True))
        assert not fails
    except ServerFailed:
        assert fails
    assert (triton.launched, triton.ended, len(began)) == (launched, launched - 1, 1)


class Still(TritonProcess):
    """Its first process does nothing; the next one works, and is ready after a few checks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(SimpleNamespace(), folder / "log", SimpleNamespace())
        self.control, self.launched, self.looks = SimpleNamespace(check_ready=self._check_ready), 0, 0

    def _check_ready(self) -> None:
        self.looks += self.launched >= 2
        if self.looks < 5:
            raise ConnectionError

    def launch(self, command, environment) -> None:
        self.launched += 1
        code = "import time; time.sleep(60)" if self.launched == 1 else "while True: pass"
        self._process = subprocess.Popen([sys.executable, "-I", "-c", code])

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def test_triton_is_launched_again_when_it_hangs(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(process, "_STILL_SECONDS", 0.5)
    monkeypatch.setattr(process, "_LEAST_WORK", 0.2)
    monkeypatch.setattr(process, "_POLL_SECONDS", 0.3)
    triton = Still(tmp_path)
    try:
        triton.start([], {}, 20, lambda: None)
        assert triton.launched in (2, 3) and "made no progress for 0.5 s" in caplog.text
    finally:
        triton.end()


@pytest.mark.parametrize(
    ("before", "after", "still"),
    [
        ({1: 1.0}, {1: 8.0}, False),
        ({1: 1.0}, {1: 2.0}, True),
        ({1: 200.0, 2: 100.0}, {3: 8.0}, False),  # a stage's old processes are gone, and its new one loads
        ({1: 1.0, 2: 200.0}, {1: 1.0, 3: 2.0}, True),
        ({}, {}, True),
    ],
)
def test_the_work_of_ended_processes_is_counted(before, after, still, monkeypatch):
    monkeypatch.setattr(process, "_STILL_SECONDS", -1.0)
    looks = [before, after]
    monkeypatch.setattr(process, "work_of", lambda pids: looks.pop(0))
    assert _Progress(list).is_hanging() == still


def test_triton_is_ended_when_reloading_a_stage_hangs(tmp_path, monkeypatch):
    """A process whose load call does not return until it is gone, like Triton's gRPC call."""
    monkeypatch.setattr(process, "_STILL_SECONDS", 0.3)
    triton, unloaded = Still(tmp_path), []
    triton.launch([], {})

    def load(stage: str, timeout: float) -> None:
        triton._process.wait(timeout)
        raise ConnectionError("it ended")

    triton.control = SimpleNamespace(unload=unloaded.append, load=load)
    try:
        with pytest.raises(ConnectionError, match="it ended"):
            triton.load_again("encoder", 20)
        assert (unloaded, triton._process.wait(5)) == (["encoder"], -signal.SIGKILL)
    finally:
        triton.end()


@pytest.mark.parametrize(
    ("container", "is_refused"), [("26.06", True), ("26.07", False), ("26.10", False), (None, False)]
)
def test_tables_on_the_gpu_need_a_container_whose_stages_honour_streams(container, is_refused, monkeypatch):
    monkeypatch.delenv(installation.CONTAINER_VARIABLE, raising=False)
    if container:
        monkeypatch.setenv(installation.CONTAINER_VARIABLE, container)
    if not is_refused:
        return installation.check_gpu_tables()
    with pytest.raises(ArtifactMismatch, match=f"the container is {container}.*--media-token-memory cpu"):
        installation.check_gpu_tables()
