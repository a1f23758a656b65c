"""A process that decodes media: forked and caged ahead, it waits for requests of one caller and answers them one at a time."""

import logging
import os
import resource
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_core.media.preprocess import prepare
from videollama_core.media.video import FILE_KINDS, Segment
from videollama_core.model.config import ModelConfig
from videollama_core.protocol import limits
from videollama_core.protocol.errors import StageFailed, UnreadableMedia, VideoLlamaError
from videollama_server.sandbox import cage, message

HEAD_BYTES = 4096  # of one message on a socket
WAITING, WORKING = "vl2-waiting", "vl2-decoding"  # names of the processes, at most 15 bytes
_JOB, _ANSWERED, _REFUSED = b"job", b"answered", b"refused"
_MOST_REQUESTS = 100  # of one process; a hundredth of what a new one costs is nothing
_MOST_KEPT = 64 * 2**20  # bytes that a process may hold between two requests beside what it began with
_MOST_RESERVED = 4 * 2**30  # bytes of addresses beside its memory: libraries, what threads reserve
_CUDA_MEMORY = 2**30  # bytes of host memory for CUDA beside what decoding may take: a guess, never measured
logger = logging.getLogger("preprocess")


@dataclass(frozen=True)
class Job:
    """What must be known of a request before anybody looks at its media.

    Attributes:
        caller: the endpoint's mark of who sent it; "" where that is not known.
        seconds: of processor time that it may take.
        media_bytes: of all its files.
        is_file: of a kind that some decoders need devices for.
    """

    caller: str
    seconds: int
    media_bytes: int
    is_file: bool


class Decoding:
    """The process, as seen from the one that forked it.

    Attributes:
        socket: where its word comes that it has answered, and its end is seen, however it comes.
        requests: that it was given.
    """

    def __init__(self, config: ModelConfig, parts: tuple[str, ...]) -> None:
        """Args: parts: of the cage, that are in force here."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.requests = 0
        self._caller = ""
        self._status: int | None = None  # once it has ended
        self._seconds_allowed = 0.0
        self._answers_again = parts == cage.PARTS and not cage.opens_devices()
        self.pid = os.fork()
        if not self.pid:
            try:
                cage.die_with_parent()
                _close_all_but(theirs.fileno())
                _wait_and_work(theirs, config, parts)
            finally:
                os._exit(0)
        theirs.close()
        self._began_with, self._data_at_first = _resident(self.pid), cage.data_bytes(self.pid)

    def may_take(self, job: Job) -> bool:
        """False where it was killed meanwhile, or has seen another caller's media."""
        is_alive = not select.select([self.socket], [], [], 0)[0]
        return is_alive and (not self.requests or job.caller == self._caller != "")

    def hand_over(self, job: Job, memory: int) -> None:
        """The next request, in a memfd, with its limits."""
        self.requests += 1
        self._caller = job.caller
        on_gpu = cage.opens_devices() and job.is_file
        allowed = limits.DECODE_MEMORY.value
        taken = allowed + 2 * job.media_bytes + on_gpu * _CUDA_MEMORY
        self._seconds_allowed = self.processor_seconds() + job.seconds + 1
        # Of what it holds by now no more than it may keep: else it could take as much again with every request.
        held = min(cage.data_bytes(self.pid), self._data_at_first + _MOST_KEPT)
        with suppress(ProcessLookupError, ConnectionError):  # it died just now, as will be seen
            mapped = resource.RLIM_INFINITY if on_gpu else held + taken + _MOST_RESERVED
            cage.set_limits(self.pid, job.seconds, held + taken, mapped, allowed, for_good=not self._answers_again)
            socket.send_fds(self.socket, [_JOB], [memory])

    def processor_seconds(self) -> float:
        """That it has taken, of all requests together."""
        return cage.processor_seconds(self.pid)

    def takes_too_long(self) -> bool:
        """Past its limit, whose signal it may have kept from itself."""
        return self.processor_seconds() > self._seconds_allowed

    def has_answered(self) -> bool:
        """Once its socket can be read: False if it has ended instead, or is going to."""
        try:
            said = self.socket.recv(HEAD_BYTES)
        except OSError:
            said = b""
        self._answers_again &= said == _ANSWERED
        return said in (_ANSWERED, _REFUSED)

    def may_be_kept(self) -> bool:
        """Whether it may answer another request of its caller's: not after one that it refused, for what was hostile may have
        left something in it."""
        return (
            self._status is None
            and self._answers_again
            and self._caller != ""
            and self.requests < _MOST_REQUESTS
            and self._holds_nothing()
        )

    def _holds_nothing(self) -> bool:
        """Of the last request: no memory to speak of, not the request's own, and no thread that goes on."""
        try:
            files = [os.readlink(file) for file in Path(f"/proc/{self.pid}/fd").iterdir()]
            # After its files: a thread may have files that the process has not, and gives them to no other.
            threads = os.listdir(f"/proc/{self.pid}/task")
            is_small = _resident(self.pid) < self._began_with + _MOST_KEPT
        except OSError:  # it has ended, or cannot be looked at
            return False
        return is_small and len(threads) == 1 and not any(file.startswith("/memfd:") for file in files)

    def end(self) -> int:
        """Kill it, unless it has ended; its status, as of wait(2)."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)  # also one that only closed its socket; what has ended keeps its status
            self.socket.close()
            self._status = os.waitpid(self.pid, 0)[1]
        return self._status


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * resource.getpagesize()


# --- in the process itself -----------------------------------------------------------------------------------------------


def _close_all_but(one: int) -> None:
    """Of what was open where this process was forked: another's socket, say, or the memory of a request."""
    for file in map(int, os.listdir("/proc/self/fd")):
        if file > 2 and file != one:
            with suppress(OSError):  # what listed them
                os.close(file)


def _wait_and_work(requests: socket.socket, config: ModelConfig, parts: tuple[str, ...]) -> None:
    # Where some kinds need devices, which one it is must be known before the rest of the cage.
    late = parts if cage.opens_devices() else ()
    if not late:
        cage.enter(parts)
    while True:
        cage.name_process(WAITING)
        _, memories, _, _ = socket.recv_fds(requests, HEAD_BYTES, 1)
        if not memories:
            return
        cage.name_process(WORKING)
        answered = _work(memories[0], config, late)
        os.close(memories[0])
        os.write(requests.fileno(), _ANSWERED if answered else _REFUSED)  # send() is not allowed here


def _work(memory: int, config: ModelConfig, late: tuple[str, ...]) -> bool:
    """The answer, or the error, takes the request's place in memory.

    Args: late: parts of the cage that are still to be entered, unless the media need devices.
    Returns: whether it is an answer.
    """
    head: dict[str, Any] = {}
    try:
        head, offset = message.read_head(memory)
        if late:
            cage.enter(() if head["kind"] in FILE_KINDS else late)
        files = []
        for size in head["sizes"]:
            files.append(message.read_bytes(memory, offset, size))
            offset += size
        os.ftruncate(memory, 0)
        message.write_answer(memory, prepare(head["kind"], files, Segment(**head["segment"]), config))
    except VideoLlamaError as error:
        _refuse(memory, error)
    except MemoryError:
        _refuse(memory, UnreadableMedia(too_much_memory()))
    except Exception as error:
        logger.exception("media of kind %r", head.get("kind"))
        _refuse(memory, StageFailed(f"stage preprocess: {type(error).__name__}: {error}"))
    else:
        return True
    return False


def too_much_memory() -> str:
    megabytes = limits.DECODE_MEMORY.value // 2**20
    return f"the media take more than {megabytes} MiB to decode ({limits.DECODE_MEMORY.name}); send smaller pictures"


def _refuse(memory: int, error: VideoLlamaError) -> None:
    message.write(memory, {"error": error.to_wire()})
