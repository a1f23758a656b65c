"""One Triton process: its start, the reason why it did not start, and its end."""

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
_ATTEMPTS = 3  # to start a Triton that a signal ends, or that stands still
_ONE_BY_ONE = "--model-load-thread-count=1"  # where four stages at once were too much for the machine
_STILL_SECONDS, _LEAST_WORK = 60.0, 6.0  # a start that does less than that (`work_of`) in so long gets nowhere
_END_SECONDS = 8.0  # from SIGTERM to SIGKILL, at most
_END_POLL_SECONDS, _GONE_SECONDS = 0.02, 1.0


class _StandsStill(ServerFailed):
    """A start that gets nowhere."""


class _Progress:
    """Whether processes, which may come and go, or those that they start get on: vLLM loads a model in processes of its own."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._work, self._looked = work_of(with_descendants(pids())), time.monotonic()

    def stands_still(self) -> bool:
        if time.monotonic() - self._looked <= _STILL_SECONDS:
            return False
        before, self._work, self._looked = self._work, work_of(with_descendants(self._pids())), time.monotonic()
        return sum(work - before.get(pid, 0.0) for pid, work in self._work.items()) < _LEAST_WORK


class TritonProcess:
    """A tritonserver and its stages.

    Args:
        sockets: its endpoints.
        runtime: what the processes keep on the machine; their shared memory is removed at their end.
        has_engine: whether the server's own process holds an engine (TensorRT-LLM), which it must put in order itself.
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
        """Raises: ServerFailed if the log cannot be written."""
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
            start_new_session=True,  # Ctrl-C reaches `vl2 serve` alone, which then drains
            pass_fds=(self._runtime.lock,),
        )
        watched = [str(self._process.pid), str(self._runtime.lock_path), str(_END_SECONDS)]
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", watcher.__file__, *watched],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # whatever ends `vl2 serve` must not end it
        )

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def start(
        self, command: list[str], environment: dict[str, str], seconds: float, meanwhile: Callable[[], None]
    ) -> None:
        """Launch it, and return when it is ready. `meanwhile` runs once, while the stages load. Raises: as `wait_until_ready`.

        Triton 2.51 aborts where a stage's process takes more than 10 s to begin, and has stood still (docs/log.md): it is launched
        again then, as it is when anything else than its own judgement ends it.
        """
        self.launch(command, environment)
        meanwhile()
        for left in reversed(range(_ATTEMPTS)):
            try:
                self.wait_until_ready(seconds)
                return
            except ServerFailed as error:
                code = 0 if self.is_running() else self.wait()
                if not left or not (code < 0 or isinstance(error, _StandsStill)):
                    raise
                why = f"signal {-code} ended Triton while it started" if code < 0 else error
                logger.warning("%s; starting it again", why)
            self.end()
            self.launch([*command, _ONE_BY_ONE], environment)

    def wait_until_ready(self, seconds: float) -> None:
        """Raises: ServerFailed with the failing stage's reason when it ends first, or is not ready in time."""
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
            if not self._has_engine and progress.stands_still():  # an engine may wait for other machines
                raise _StandsStill(f"Triton stood still for {_STILL_SECONDS:g} s while it started")
        raise ServerFailed(f"Triton was not ready after {seconds:g} s")

    def load_again(self, stage: str, seconds: float) -> None:
        """Load a stage whose process died. Raises: OSError if that fails, also where it gets nowhere: Triton is killed then.

        In Triton 2.51 a load may stay without an end where the stage's old process died with a lock in its hands.
        """
        triton = self._process  # of now: another thread may start a new one meanwhile
        assert triton is not None
        self.control.unload(stage)
        progress = _Progress(lambda: [pid for pid, name in stage_processes(self.pid).items() if name == stage])
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(self.control.load, stage, seconds)
            while not wait([loading], _POLL_SECONDS).done:
                if progress.stands_still():
                    logger.warning("loading %s stood still for %g s; ending Triton", stage, _STILL_SECONDS)
                    triton.kill()
                    break
        loading.result()

    def _reason(self) -> str:
        """The failing stage's own words, from the log."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            text = file.read().decode(errors="replace")
        failures = re.findall(r"failed to load '(\w+)' version \d+: (.*)", text)
        if failures:
            return "; ".join(f"stage {stage}: {_without_code(reason)}" for stage, reason in failures)
        errors = [line for line in text.splitlines() if re.match(r"E\d{4} ", line)]
        return errors[-1] if errors else "It left no reason."

    def ask_to_end(self) -> None:
        if self.is_running() and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def _has_something_to_end(self) -> bool:
        """Ordinary stages hold nothing, and for each of their processes Triton 2.51 sleeps a second, one after the other."""
        return self._has_engine or any(contract.STAGES[stage].decoupled for stage in stage_processes(self.pid).values())

    def end(self) -> None:
        """End the server and every stub that would outlive it, once those that hold something have put it in order."""
        if self._process is None:
            return
        left = stage_processes(self.pid)  # as long as they are its own
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + _END_SECONDS
            while self.is_running() and time.monotonic() < deadline and self._has_something_to_end():
                time.sleep(_END_POLL_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # at once: a stub whose server is gone would say so in the log
        self._process.wait()
        deadline = time.monotonic() + _GONE_SECONDS
        while any(map(is_alive, left)) and time.monotonic() < deadline:
            time.sleep(_END_POLL_SECONDS)
        self._runtime.remove_shared_memory()
        if self._watcher is not None:
            self._watcher.communicate(b"ended")
            self._watcher = None


def _without_code(reason: str) -> str:
    """Triton's code word in front of a reason is noise here."""
    return re.sub(r"^(Internal|Invalid argument|Unavailable): ", "", reason.strip()).strip()
