"""One Triton process: its start, the reason for a failed start, and its end."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import IO

from videollama_core.protocol import contract
from videollama_core.protocol.errors import ServerFailed
from videollama_server.control import Sockets, TritonControl
from videollama_server.machine import watcher, with_parent
from videollama_server.machine.log import open_log
from videollama_server.machine.runtime import Runtime
from videollama_server.processes import is_alive, stage_processes, with_descendants, work_of

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_ATTEMPTS = 3  # to start Triton, if a signal ends it or it hangs
_ONE_BY_ONE = "--model-load-thread-count=1"  # if loading four stages at once was too much for the machine
_STILL_SECONDS, _LEAST_WORK = 60.0, 6.0  # a start that does less work (`work_of`) in this time hangs
_END_SECONDS = 8.0  # at most, from SIGTERM to SIGKILL
_GONE_SECONDS = 1.0  # at most, from SIGKILL until the processes are gone
_END_POLL_SECONDS = 0.02


class _StartHangs(ServerFailed):
    """A start that makes no progress."""


class _Progress:
    """Whether processes and their descendants make progress. They may come and go: vLLM loads a model in subprocesses."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._work, self._checked = work_of(with_descendants(pids())), time.monotonic()

    def is_hanging(self) -> bool:
        """Whether there was too little progress in the last interval; False until it is over."""
        if time.monotonic() - self._checked <= _STILL_SECONDS:
            return False
        before, self._work, self._checked = self._work, work_of(with_descendants(self._pids())), time.monotonic()
        return sum(work - before.get(pid, 0.0) for pid, work in self._work.items()) < _LEAST_WORK


class TritonProcess:
    """A tritonserver and its stages.

    Args:
        sockets: where it listens.
        log: the file for its output.
        runtime: the files of the server; its shared memory is removed when the processes have ended.
        has_engine: whether the server's own process holds an engine (TensorRT-LLM), which it must shut down itself.
    """

    def __init__(self, sockets: Sockets, log: Path, runtime: Runtime, has_engine: bool = False) -> None:
        self._sockets, self._log, self._runtime = sockets, log, runtime
        self._has_engine = has_engine
        self.control = TritonControl(sockets)
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self, command: list[str], environment: dict[str, str]) -> None:
        """Start the process, without waiting until it is ready. Raises: ServerFailed if the log cannot be written."""
        self._sockets.prepare()
        with open_log(self._log) as log:
            self._log_start = log.tell()
            self._runtime.note_environment(lambda: self._start(command, environment, log), self.is_running)

    def _start(self, command: list[str], environment: dict[str, str], log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            with_parent.command(command),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C must reach only `vl2 serve`, which then drains
            pass_fds=(self._runtime.lock,),
        )
        watcher_arguments = [str(self._process.pid), str(self._runtime.lock_path), str(_END_SECONDS)]
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", watcher.__file__, *watcher_arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it must survive whatever ends `vl2 serve`
        )

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Wait until it ends by itself, and return its exit code."""
        assert self._process is not None
        return self._process.wait()

    def start(
        self, command: list[str], environment: dict[str, str], seconds: float, meanwhile: Callable[[], None]
    ) -> None:
        """Launch it, and return when it is ready.

        Triton 2.51 aborts if a stage's process takes more than 10 s to start, and may hang (docs/log.md). In both cases, or if
        any other signal ends it, it is launched again.

        Args:
            seconds: time limit of each attempt.
            meanwhile: called once, while the stages load.
        Raises: the errors of `wait_until_ready`.
        """
        self.launch(command, environment)
        meanwhile()
        for remaining in reversed(range(_ATTEMPTS)):
            try:
                self.wait_until_ready(seconds)
                return
            except ServerFailed as error:
                code = 0 if self.is_running() else self.wait()
                if not remaining or not (code < 0 or isinstance(error, _StartHangs)):
                    raise
                reason = f"signal {-code} ended Triton while it started" if code < 0 else error
                logger.warning("%s; starting it again", reason)
            self.end()
            self.launch([*command, _ONE_BY_ONE], environment)

    def wait_until_ready(self, seconds: float) -> None:
        """Wait at most so many seconds. Raises: ServerFailed, with the failing stage's reason, if it ends or is too slow."""
        deadline = time.monotonic() + seconds
        progress = _Progress(lambda: [self.pid])
        while time.monotonic() < deadline:
            if not self.is_running():
                raise ServerFailed(f"Triton ended with code {self.wait()} while it started. {self._reason()}")
            try:
                self.control.check_ready()
                return
            except OSError:
                time.sleep(_POLL_SECONDS)
            if not self._has_engine and progress.is_hanging():  # an engine may wait for other machines
                raise _StartHangs(f"Triton made no progress for {_STILL_SECONDS:g} s while it started")
        raise ServerFailed(f"Triton was not ready after {seconds:g} s")

    def load_again(self, stage: str, seconds: float) -> None:
        """Reload a stage whose process died. Raises: OSError if that fails or hangs; in the latter case, Triton is killed.

        In Triton 2.51 a load may hang if the stage's old process died while it held a lock.
        """
        triton = self._process  # another thread may start a new one in the meantime
        assert triton is not None
        self.control.unload(stage)
        progress = _Progress(lambda: [pid for pid, name in stage_processes(self.pid).items() if name == stage])
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(self.control.load, stage, seconds)
            while not wait([loading], _POLL_SECONDS).done:
                if progress.is_hanging():
                    logger.warning("loading %s made no progress for %g s; ending Triton", stage, _STILL_SECONDS)
                    triton.kill()
                    break
        loading.result()

    def _reason(self) -> str:
        """The failing stage's error message, from the log."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            text = file.read().decode(errors="replace")
        failures = re.findall(r"failed to load '(\w+)' version \d+: (.*)", text)
        if failures:
            return "; ".join(f"stage {stage}: {_without_code(reason)}" for stage, reason in failures)
        errors = [line for line in text.splitlines() if re.match(r"E\d{4} ", line)]
        return errors[-1] if errors else "It gave no reason."

    def ask_to_end(self) -> None:
        """Send SIGTERM, without waiting."""
        if self.is_running() and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def _needs_shutdown(self) -> bool:
        """Whether a process needs an orderly shutdown. Ordinary stages do not, and Triton 2.51 sleeps a second for each."""
        return self._has_engine or any(contract.STAGES[stage].decoupled for stage in stage_processes(self.pid).values())

    def end(self) -> None:
        """End the server and every stub that would outlive it, after those that need it have shut down in order."""
        if self._process is None:
            return
        stages = stage_processes(self.pid)  # before they lose their parent
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + _END_SECONDS
            while self.is_running() and time.monotonic() < deadline and self._needs_shutdown():
                time.sleep(_END_POLL_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # at once: stubs would log that their server is gone
        self._process.wait()
        deadline = time.monotonic() + _GONE_SECONDS
        while any(map(is_alive, stages)) and time.monotonic() < deadline:
            time.sleep(_END_POLL_SECONDS)
        self._runtime.remove_shared_memory()
        if self._watcher is not None:
            self._watcher.communicate(b"ended")
            self._watcher = None


def _without_code(reason: str) -> str:
    """Strip Triton's status code from a reason."""
    return re.sub(r"^(Internal|Invalid argument|Unavailable): ", "", reason.strip()).strip()
