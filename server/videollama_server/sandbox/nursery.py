"""The process that decoding processes are forked from: `python -m videollama_server.sandbox.nursery SOCKET CONFIG`.

It has imported what they need and never looks at media itself. One request at a time: a message comes with the memory that holds it;
a process is forked, caged, given its limits and watched; how it ended goes back. Any message meanwhile, or the end of the other side, kills it.
"""

import encodings
import gc
import importlib
import json
import logging
import os
import pkgutil
import select
import socket
import sys
import time
from typing import Any

import av
from PIL import Image

from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.media.video_decoders import frame_decoder
from videollama_core.model.config import ModelConfig
from videollama_core.protocol import limits
from videollama_core.protocol.errors import StageFailed, UnreadableMedia, VideoLlamaError
from videollama_core.telemetry.logs import log_to_stderr
from videollama_server.sandbox import cage, message

_HEAD_BYTES = 4096  # of one message on the socket
_STALLED_SECONDS = (
    60  # without a hundredth of processor time: it waits for what never comes, however busy the machine is
)
logger = logging.getLogger("preprocess")


def main(words: list[str]) -> None:
    log_to_stderr(logging.WARNING, "%(asctime)s %(name)s %(levelname)s %(message)s", "preprocess")
    parent = socket.socket(fileno=int(words[0]))
    config = ModelConfig.from_dict(json.loads(words[1]))
    _import_all()
    found = cage.tried()
    parent.send(json.dumps(found).encode())
    parts = tuple(part for part, told in found.items() if told == "in force")
    gc.collect()
    gc.freeze()  # pages that both processes share stay shared
    while True:
        data, memories, _, _ = socket.recv_fds(parent, _HEAD_BYTES, 1)
        if not data:
            return
        if memories:  # else a message that came after the end
            ended = _supervise(parent, memories[0], config, parts)
            os.close(memories[0])
            if ended is None:
                return
            parent.send(json.dumps(ended).encode())


def _import_all() -> None:
    """Also what is else imported on demand: in the cage it cannot be any more."""
    for package in (av, encodings):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", ".datasets", ".mbcs", ".oem")):
                importlib.import_module(module.name)
    Image.init()
    frame_decoder()


def _supervise(
    parent: socket.socket, memory: int, config: ModelConfig, parts: tuple[str, ...]
) -> dict[str, Any] | None:
    """How the process for one request ended; None if the other side is gone."""
    alive, held = os.pipe()  # its end is seen here when the process ends, however it does
    pid = os.fork()
    if not pid:
        try:
            cage.die_with_parent()
            parent.close()
            _work(memory, config, parts)
        finally:
            os._exit(0)
    os.close(held)
    killed, gone = "", False
    spent, stalled = 0.0, time.monotonic()  # its processor time, which the kernel bounds; since when it is the same
    while True:
        ready, _, _ = select.select([alive] if killed else [alive, parent.fileno()], [], [], 1.0)
        if alive in ready:
            break
        if ready:
            gone = not parent.recv(_HEAD_BYTES)
            killed = "cancelled"
        elif (now := processor_seconds(pid)) > spent:
            spent, stalled = now, time.monotonic()
        elif time.monotonic() > stalled + _STALLED_SECONDS:
            killed = "too long"
        if killed:
            os.kill(pid, 9)
    os.close(alive)
    _, status, used = os.wait4(pid, 0)
    return None if gone else {"killed": killed, "status": status, "cpu": used.ru_utime + used.ru_stime}


def processor_seconds(pid: int) -> float:
    """Of all threads of a process that was not waited for yet."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()  # from field 3 of proc(5) on: a name may hold anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(memory: int, config: ModelConfig, parts: tuple[str, ...]) -> None:
    """In the forked process: the answer, or the error, takes the request's place in memory."""
    try:
        head, offset = message.read_head(memory)
        sizes = head["sizes"]
        allowed = limits.DECODE_MEMORY.value
        cage.set_limits(message.time_limit(head["kind"]).value, allowed + 2 * sum(sizes), allowed)
        cage.enter(parts)
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
