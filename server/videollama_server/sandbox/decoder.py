"""Media -> pixels and filterbanks, each request in a process of its own that a hostile file can have to itself."""

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
_LOOK_SECONDS = 0.1  # between two looks whether somebody still waits for the answer
_KEPT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "VL2_DECODER", "CUDA_VISIBLE_DEVICES")  # of the environment
_CANCEL = b"cancel"
logger = logging.getLogger(__name__)


class CagedDecoder:
    """Decodes one request at a time; `close` ends its processes, as the end of this one does."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises: StageFailed if the process that others are forked from does not start."""
        self._config = json.dumps(config.to_dict())
        self.in_force: dict[str, str] = {}  # part of the cage -> "in force", or what is missing
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [_python(), "-m", "videollama_server.sandbox.nursery", str(theirs.fileno()), self._config],
                env={name: os.environ[name] for name in _KEPT if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
            )
        self._socket = ours
        told = self._receive(_START_SECONDS)
        if told is None:
            self.close()
            raise StageFailed(f"the process that media are decoded in did not start (code {self._process.returncode})")
        self.in_force = {str(part): str(state) for part, state in told.items()}
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
        """As media.preprocess.prepare, which runs in another process.

        Args:
            is_wanted: asked every 0.1 s; once it is false the work ends.
            caller: whose media they are: requests of one caller may share a process, one after another; without a name this
                one has a process to itself.
        Raises: what `prepare` does; UnreadableMedia too if the file took too long, too much memory, or killed its process;
            Cancelled if nobody waited any more; StageDied if the process was killed from elsewhere.
        """
        if not is_wanted():
            raise Cancelled("the client left")
        head = {"kind": kind, "segment": asdict(segment), "sizes": [len(file) for file in files]}
        job = Job(caller, message.time_limit(kind).value, sum(map(len, files)), kind in FILE_KINDS)
        while True:
            memory = os.memfd_create("media", os.MFD_CLOEXEC)
            try:
                message.write(memory, head, files)
                ended = self._run(job, memory, is_wanted)
                error = _error(ended, kind)
                if error is None:
                    return message.read_answer(memory)
            finally:
                os.ftruncate(memory, 0)  # the other process may still have it mapped
                os.close(memory)
            if ended["was_fresh"] or not _crashed(ended):
                raise error
            # What an earlier file left in the process may have ended it: once more, in a fresh one.

    def _run(self, job: Job, memory: int, is_wanted: Callable[[], bool]) -> dict[str, Any]:
        if self._process.poll() is not None:
            self._restart()
        try:
            socket.send_fds(self._socket, [json.dumps(asdict(job)).encode()], [memory])
            cancelled = False
            while not select.select([self._socket], [], [], _LOOK_SECONDS)[0]:
                if not cancelled and not is_wanted():
                    self._socket.send(_CANCEL)
                    cancelled = True
            ended = self._receive(_LOOK_SECONDS)
        except OSError:
            ended = None
        if ended is None:
            self._restart()
            raise StageDied("the process that decodes media died with this request on it; send it again")
        return ended

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """None if nothing comes, or the other side is gone."""
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


def _crashed(ended: dict[str, Any]) -> bool:
    """By a signal that nobody sent, such as SIGSEGV."""
    not_its_own = (0, signal.SIGKILL, signal.SIGTERM, signal.SIGXCPU)
    return not ended["killed"] and ended["status"] & 127 not in not_its_own


def _error(ended: dict[str, Any], kind: str) -> VideoLlamaError | None:
    if ended["killed"] == "cancelled":
        return Cancelled("the client left")
    number = ended["status"] & 127
    if ended["killed"] == "too long" or number == signal.SIGXCPU:
        limit = message.time_limit(kind)
        return UnreadableMedia(
            f"the media take more than {limit.value} s to decode ({limit.name}); send shorter or smaller"
        )
    if number in (signal.SIGKILL, signal.SIGTERM):
        return StageDied("the process that decoded the media was killed; the machine may be short of memory")
    if number:
        name = signal.Signals(number).name
        return UnreadableMedia(
            f"the media ended the process that decoded them ({name}): the file is damaged; re-encode it"
        )
    return None


def _python() -> str:
    found = sys.executable or shutil.which("python3")
    if not found:
        raise StageFailed("no Python interpreter is found to decode media with; put python3 on PATH")
    return found
