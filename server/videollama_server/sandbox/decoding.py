"""A process that decodes media: forked and confined in advance, it answers one caller's requests, one at a time."""

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
from videollama_server.sandbox import confinement, message

HEAD_BYTES = 4096  # the largest message on a socket
WAITING, WORKING = "vl2-waiting", "vl2-decoding"  # process names, at most 15 bytes
_JOB, _ANSWERED, _REFUSED = b"job", b"answered", b"refused"
_MOST_REQUESTS = 100  # per process, which makes the cost of starting one negligible
_MOST_KEPT = 64 * 2**20  # bytes that a process may grow by, between requests, since its start
_MOST_RESERVED = 4 * 2**30  # bytes of address space beyond its memory: libraries, and what threads reserve
_CUDA_MEMORY = 2**30  # bytes of host memory for CUDA, beyond what decoding may use: a guess, never measured
logger = logging.getLogger("preprocess")


@dataclass(frozen=True)
class Job:
    """What must be known about a request before its media is read.

    Attributes:
        caller: the endpoint's mark of the caller; "" if it is unknown.
        seconds: processor time that it may use.
        media_bytes: total size of its files.
        is_file: whether its kind is one that some decoders need devices for.
    """

    caller: str
    seconds: int
    media_bytes: int
    is_file: bool


class Decoding:
    """The decoding process, as seen by the process that forked it.

    Attributes:
        socket: readable when it has answered or ended.
        requests: the number of requests that it was given.
    """

    def __init__(self, config: ModelConfig, parts: tuple[str, ...]) -> None:
        """Args: parts: the parts of the confinement that are in force here."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.requests = 0
        self._caller = ""
        self._status: int | None = None  # its wait status, once it has ended
        self._seconds_allowed = 0.0
        self._is_reusable = parts == confinement.PARTS and not confinement.opens_devices()
        self.pid = os.fork()
        if not self.pid:
            try:
                confinement.die_with_parent()
                _close_all_but(theirs.fileno())
                _wait_and_work(theirs, config, parts)
            finally:
                os._exit(0)
        theirs.close()
        self._initial_resident, self._initial_data = _resident(self.pid), confinement.data_bytes(self.pid)

    def may_take(self, job: Job) -> bool:
        """Whether it can take a request: it is alive and has not seen another caller's media."""
        is_alive = not select.select([self.socket], [], [], 0)[0]
        return is_alive and (not self.requests or job.caller == self._caller != "")

    def hand_over(self, job: Job, memory: int) -> None:
        """Give it its next request, in the memfd `memory`, and set the limits for it."""
        self.requests += 1
        self._caller = job.caller
        on_gpu = confinement.opens_devices() and job.is_file
        allowed = limits.DECODE_MEMORY.value
        extra = allowed + 2 * job.media_bytes + on_gpu * _CUDA_MEMORY
        self._seconds_allowed = self.processor_seconds() + job.seconds + 1
        # Memory that it already holds counts only up to what it may keep, or it could gain as much with every request.
        held = min(confinement.data_bytes(self.pid), self._initial_data + _MOST_KEPT)
        with suppress(ProcessLookupError, ConnectionError):  # it has just died; the caller finds out from the socket
            mapped = resource.RLIM_INFINITY if on_gpu else held + extra + _MOST_RESERVED
            confinement.set_limits(self.pid, job.seconds, held + extra, mapped, allowed, for_good=not self._is_reusable)
            socket.send_fds(self.socket, [_JOB], [memory])

    def processor_seconds(self) -> float:
        """Processor time that it has used for all its requests together."""
        return confinement.processor_seconds(self.pid)

    def takes_too_long(self) -> bool:
        """Whether it is past its time limit; it may have blocked the signal."""
        return self.processor_seconds() > self._seconds_allowed

    def has_answered(self) -> bool:
        """Whether it has answered, once its socket is readable; False if it has ended instead, or is about to."""
        try:
            reply = self.socket.recv(HEAD_BYTES)
        except OSError:
            reply = b""
        self._is_reusable &= reply == _ANSWERED
        return reply in (_ANSWERED, _REFUSED)

    def may_be_kept(self) -> bool:
        """Whether it may take another request of its caller: not after one that it refused, which may have tampered with it."""
        return (
            self._status is None
            and self._is_reusable
            and self._caller != ""
            and self.requests < _MOST_REQUESTS
            and self._holds_nothing()
        )

    def _holds_nothing(self) -> bool:
        """Whether the last request left nothing behind: no significant memory, no memfd and no running thread."""
        try:
            files = [os.readlink(file) for file in Path(f"/proc/{self.pid}/fd").iterdir()]
            # After the files: a thread may have files that the process does not have, but cannot pass them to another thread.
            threads = os.listdir(f"/proc/{self.pid}/task")
            is_small = _resident(self.pid) < self._initial_resident + _MOST_KEPT
        except OSError:  # it has ended, or cannot be inspected
            return False
        return is_small and len(threads) == 1 and not any(file.startswith("/memfd:") for file in files)

    def end(self) -> int:
        """Kill it unless it has ended, and return its status as of wait(2)."""
        if self._status is None:
            # It may only have closed its socket; a process that has ended keeps its status.
            os.kill(self.pid, signal.SIGKILL)
            self.socket.close()
            self._status = os.waitpid(self.pid, 0)[1]
        return self._status


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * resource.getpagesize()


# --- in the process itself -----------------------------------------------------------------------------------------------


def _close_all_but(kept: int) -> None:
    """Close the files inherited from the parent, such as other processes' sockets or the memory of a request."""
    for file in map(int, os.listdir("/proc/self/fd")):
        if file > 2 and file != kept:
            with suppress(OSError):  # the descriptor that listed them
                os.close(file)


def _wait_and_work(requests: socket.socket, config: ModelConfig, parts: tuple[str, ...]) -> None:
    # If some kinds need devices, the rest of the confinement is entered once the kind is known.
    late = parts if confinement.opens_devices() else ()
    if not late:
        confinement.enter(parts)
    while True:
        confinement.name_process(WAITING)
        _, memories, _, _ = socket.recv_fds(requests, HEAD_BYTES, 1)
        if not memories:
            return
        confinement.name_process(WORKING)
        answered = _work(memories[0], config, late)
        os.close(memories[0])
        os.write(requests.fileno(), _ANSWERED if answered else _REFUSED)  # seccomp forbids send()


def _work(memory: int, config: ModelConfig, late: tuple[str, ...]) -> bool:
    """Replace the request in memory with its answer or error.

    Args: late: parts of the confinement still to be entered, unless the media need devices.
    Returns: whether it is an answer.
    """
    head: dict[str, Any] = {}
    try:
        head, offset = message.read_head(memory)
        if late:
            confinement.enter(() if head["kind"] in FILE_KINDS else late)
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
    """The message for media that need too much memory."""
    megabytes = limits.DECODE_MEMORY.value // 2**20
    return f"the media need more than {megabytes} MiB to decode ({limits.DECODE_MEMORY.name}); send smaller pictures"


def _refuse(memory: int, error: VideoLlamaError) -> None:
    message.write(memory, {"error": error.to_wire()})
