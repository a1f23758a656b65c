"""Turn media into pixels and filterbanks in separate processes, so that a hostile file can only harm its own."""

import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from videollama_core.media.video import FILE_KINDS, Segment
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.errors import Cancelled, StageDied, StageFailed, UnreadableMedia, VideoLlamaError
from videollama_core.protocol.messages import EncoderInputs
from videollama_server.sandbox import message
from videollama_server.sandbox.decoding import Job

_START_SECONDS = 60.0
_POLL_SECONDS = 0.1  # how often to check whether the caller still waits
# Environment variables that the fork server gets.
_KEPT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "VL2_DECODER", "CUDA_VISIBLE_DEVICES")
_CANCEL = b"cancel"
logger = logging.getLogger(__name__)


class ConfinedDecoder:
    """Decodes one request at a time. Its processes end with `close`, or with this process."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises: StageFailed if the fork server does not start."""
        self._config = json.dumps(config.to_dict())
        self.in_force: dict[str, str] = {}  # part of the confinement -> "in force", or what is missing
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [_python(), "-m", "videollama_server.sandbox.spawner", str(theirs.fileno()), self._config],
                env={name: os.environ[name] for name in _KEPT if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
            )
        self._socket = ours
        states = self._receive(_START_SECONDS)
        if states is None:
            self.close()
            raise StageFailed(
                f"the process that decodes media did not start (exit code {self._process.returncode}); see the log"
            )
        self.in_force = {str(part): str(state) for part, state in states.items()}
        for part, state in self.in_force.items():
            logger.log(logging.INFO if state == "in force" else logging.WARNING, "decoding: %s %s", part, state)

    def prepare(
        self,
        kind: str,
        files: Sequence[bytes],
        segment: Segment,
        is_wanted: Callable[[], bool] = lambda: True,
        caller: str = "",
    ) -> EncoderInputs:
        """Run media.preprocess.prepare in another process.

        Args:
            is_wanted: polled every 0.1 s; once it returns false, the work ends.
            caller: who sent the media: consecutive requests of one caller may share a process; a request without a caller
                gets its own.
        Raises: the errors of `prepare`; also UnreadableMedia if the file took too long, needed too much memory, or crashed
            its process; Cancelled if it was no longer wanted; StageDied if the process was killed from outside.
        """
        if not is_wanted():
            raise Cancelled("the client disconnected")
        head = {"kind": kind, "segment": asdict(segment), "sizes": [len(file) for file in files]}
        job = Job(caller, message.time_limit(kind).value, sum(map(len, files)), kind in FILE_KINDS)
        while True:
            memory = os.memfd_create("media", os.MFD_CLOEXEC)
            try:
                message.write(memory, head, files)
                outcome = self._run(job, memory, is_wanted)
                error = _error(outcome, kind)
                if error is None:
                    return message.read_answer(memory)
            finally:
                os.ftruncate(memory, 0)  # the other process may still have it mapped
                os.close(memory)
            if outcome["was_fresh"] or not _crashed(outcome):
                raise error
            # An earlier file may have damaged the process: try once more in a fresh one.

    def _run(self, job: Job, memory: int, is_wanted: Callable[[], bool]) -> dict[str, Any]:
        if self._process.poll() is not None:
            self._restart()
        try:
            socket.send_fds(self._socket, [json.dumps(asdict(job)).encode()], [memory])
            cancelled = False
            while not select.select([self._socket], [], [], _POLL_SECONDS)[0]:
                if not cancelled and not is_wanted():
                    self._socket.send(_CANCEL)
                    cancelled = True
            outcome = self._receive(_POLL_SECONDS)
        except OSError:
            outcome = None
        if outcome is None:
            self._restart()
            raise StageDied("the process that decodes media died during this request; send it again")
        return outcome

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """Return a message; None if none arrives in time, or the other side is gone."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return None
        data = self._socket.recv(4096)
        return json.loads(data) if data else None

    def _restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _crashed(outcome: dict[str, Any]) -> bool:
    """Whether it ended by a signal of its own making, such as SIGSEGV."""
    external = (0, signal.SIGKILL, signal.SIGTERM, signal.SIGXCPU)
    return not outcome["killed"] and outcome["status"] & 127 not in external


def _error(outcome: dict[str, Any], kind: str) -> VideoLlamaError | None:
    if outcome["killed"] == "cancelled":
        return Cancelled("the client disconnected")
    number = outcome["status"] & 127
    if outcome["killed"] == "too long" or number == signal.SIGXCPU:
        limit = message.time_limit(kind)
        return UnreadableMedia(
            f"the media take more than {limit.value} s to decode ({limit.name}); send shorter or smaller media"
        )
    if number in (signal.SIGKILL, signal.SIGTERM):
        return StageDied(
            "the process that decoded the media was killed; the machine may be short of memory; send the request again"
        )
    if number:
        name = signal.Signals(number).name
        return UnreadableMedia(
            f"the media crashed the process that decoded them ({name}): the file is damaged; re-encode it"
        )
    return None


def _python() -> str:
    interpreter = sys.executable or shutil.which("python3")
    if not interpreter:
        raise StageFailed("there is no Python interpreter to decode media with; put python3 on PATH")
    return interpreter
