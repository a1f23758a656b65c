"""The process that decoding processes are forked from: `python -m videollama_server.sandbox.nursery SOCKET CONFIG`.

It has imported what they need and never looks at media itself. One request at a time: a message comes with the memory that holds it;
a process that was forked ahead gets it, puts on its limits and the rest of its cage, and is watched; how it ended goes back. Any message
meanwhile, or the end of the other side, kills it.
"""

import encodings
import gc
import importlib
import json
import logging
import os
import pkgutil
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import av
from PIL import Image

from videollama_core.media.preprocess import prepare
from videollama_core.media.video import FILE_KINDS, Segment
from videollama_core.media.video_decoders import frame_decoder
from videollama_core.model.config import ModelConfig
from videollama_core.protocol import limits
from videollama_core.protocol.errors import StageFailed, UnreadableMedia, VideoLlamaError
from videollama_core.telemetry.logs import log_to_stderr
from videollama_server.machine.memory import keep_freed
from videollama_server.sandbox import cage, message

_HEAD_BYTES = 4096  # of one message on the socket
_STALLED_SECONDS = 60  # without a hundredth of processor time: it waits for what never comes, however busy the machine
_CUDA_MEMORY = 2**30  # bytes of host memory for CUDA beside what decoding may take: a guess, never measured
_JOB, _DONE = b"job", b"done"
WAITING, WORKING = "vl2-waiting", "vl2-decoding"  # names of the processes, at most 15 bytes
logger = logging.getLogger("preprocess")


def main(words: list[str]) -> None:
    log_to_stderr(logging.WARNING, "%(asctime)s %(name)s %(levelname)s %(message)s", "preprocess")
    parent = socket.socket(fileno=int(words[0]))
    config = ModelConfig.from_dict(json.loads(words[1]))
    _import_all()
    keep_freed()
    found = cage.tried()
    parent.send(json.dumps(cage.for_video_files(found)).encode())
    parts = tuple(part for part, told in found.items() if told == cage.IN_FORCE)
    gc.collect()
    gc.freeze()  # pages that both processes share stay shared
    while True:
        ahead = Decoding(parent, config, parts)  # while nobody waits for it
        memories: list[int] = []
        while not memories:  # else a message that came after the end
            data, memories, _, _ = socket.recv_fds(parent, _HEAD_BYTES, 1)
            if not data:
                return
        if not ahead.is_waiting():
            ahead.close()
            ahead = Decoding(parent, config, parts)
        if not _supervise(parent, ahead, memories[0]):
            return
        os.close(memories[0])


def _import_all() -> None:
    """Also what is else imported on demand: in the cage it cannot be any more."""
    for package in (av, encodings):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", ".datasets", ".mbcs", ".oem")):
                importlib.import_module(module.name)
    Image.init()
    frame_decoder()


class Decoding:
    """A process for one request, forked and caged ahead as far as that goes: it waits.

    Attributes:
        socket: where its word comes that it has answered, and its end is seen, however it comes.
    """

    def __init__(self, parent: socket.socket, config: ModelConfig, parts: tuple[str, ...]) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            try:
                cage.die_with_parent()
                for ours in (parent, self.socket):
                    ours.close()
                _wait_and_work(theirs, config, parts)
            finally:
                os._exit(0)
        theirs.close()

    def is_waiting(self) -> bool:
        """False for one that was killed meanwhile."""
        return not select.select([self.socket], [], [], 0)[0]

    def hand_over(self, memory: int) -> None:
        with suppress(OSError):  # it died just now, as will be seen
            socket.send_fds(self.socket, [_JOB], [memory])

    def has_answered(self) -> bool:
        """Once its socket can be read: False if it has ended instead."""
        with suppress(OSError):
            return self.socket.recv(len(_DONE)) == _DONE
        return False

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> int:
        """Its status, as of wait(2), once it has ended."""
        self.socket.close()
        return os.waitpid(self.pid, 0)[1]


def _supervise(parent: socket.socket, decoding: Decoding, memory: int) -> bool:
    """Tell the other side how the process for one request ended; False if that is gone."""
    decoding.hand_over(memory)
    killed = ""
    spent, stalled = 0.0, time.monotonic()  # its processor time, which the kernel bounds; since when it is the same
    while True:
        ready, _, _ = select.select([decoding.socket] if killed else [decoding.socket, parent], [], [], 1.0)
        if decoding.socket in ready:
            break
        if ready:
            if not parent.recv(_HEAD_BYTES):
                return False  # it dies with this process
            killed = "cancelled"
        elif (now := processor_seconds(decoding.pid)) > spent:
            spent, stalled = now, time.monotonic()
        elif time.monotonic() > stalled + _STALLED_SECONDS:
            killed = "too long"
        if killed:
            decoding.kill()
    answered = decoding.has_answered() and not killed
    decoding.kill()  # also one that only closed its socket; what has ended keeps its status
    if answered:
        _tell(parent, "", 0)  # before Linux has taken its memory back
        decoding.close()
    else:
        _tell(parent, killed, decoding.close())
    return True


def _tell(parent: socket.socket, killed: str, status: int) -> None:
    parent.send(json.dumps({"killed": killed, "status": status}).encode())


def processor_seconds(pid: int) -> float:
    """Of all threads of a process that was not waited for yet."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()  # from field 3 of proc(5) on: a name may hold anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait_and_work(requests: socket.socket, config: ModelConfig, parts: tuple[str, ...]) -> None:
    """In the forked process: the answer, or the error, takes the request's place in memory."""
    held = cage.data_bytes()
    # Seccomp forbids what comes before the work. Where some kinds need devices, which one it is must be known first.
    ahead = () if cage.opens_devices() else tuple(part for part in parts if part != "seccomp")
    cage.enter(ahead)
    cage.name_process(WAITING)
    _, memories, _, _ = socket.recv_fds(requests, _HEAD_BYTES, 1)
    if memories:
        cage.name_process(WORKING)
        _work(memories[0], config, tuple(part for part in parts if part not in ahead), held)
        os.write(requests.fileno(), _DONE)  # send() is not allowed here


def _work(memory: int, config: ModelConfig, parts: tuple[str, ...], held: int) -> None:
    head: dict[str, Any] = {}
    try:
        head, offset = message.read_head(memory)
        sizes = head["sizes"]
        allowed = limits.DECODE_MEMORY.value
        on_gpu = cage.opens_devices() and head["kind"] in FILE_KINDS
        memory_limit = held + allowed + 2 * sum(sizes) + on_gpu * _CUDA_MEMORY
        cage.set_limits(message.time_limit(head["kind"]).value, memory_limit, allowed)
        cage.enter(() if on_gpu else parts)
        files = []
        for size in sizes:
            files.append(message.read_bytes(memory, offset, size))
            offset += size
        os.ftruncate(memory, 0)
        found = prepare(head["kind"], files, Segment(**head["segment"]), config)
        message.write_answer(memory, found)
    except VideoLlamaError as error:
        _refuse(memory, error)
    except MemoryError:
        _refuse(memory, UnreadableMedia(too_much_memory()))
    except Exception as error:
        logger.exception("media of kind %r", head.get("kind"))
        _refuse(memory, StageFailed(f"stage preprocess: {type(error).__name__}: {error}"))


def too_much_memory() -> str:
    megabytes = limits.DECODE_MEMORY.value // 2**20
    return f"the media take more than {megabytes} MiB to decode ({limits.DECODE_MEMORY.name}); send smaller pictures"


def _refuse(memory: int, error: VideoLlamaError) -> None:
    message.write(memory, {"error": error.to_wire()})


if __name__ == "__main__":
    main(sys.argv[1:])
