"""The process that decoding processes are forked from: `python -m videollama_server.sandbox.nursery SOCKET CONFIG`.

It has imported what they need and never looks at media itself. One request at a time: a message comes with the memory that holds it;
a process that was forked ahead (decoding.py), or the one that answered its caller's last request, gets it with its limits, and is
watched; how it ended goes back. Any message meanwhile, or the end of the other side, kills it.
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
from collections.abc import Callable
from functools import partial

import av
from PIL import Image

from videollama_core.media.video_decoders import frame_decoder
from videollama_core.model.config import ModelConfig
from videollama_core.telemetry.logs import log_to_stderr
from videollama_server.machine.memory import keep_freed
from videollama_server.sandbox import cage
from videollama_server.sandbox.decoding import HEAD_BYTES, Decoding, Job

_KEPT_SECONDS = 5.0  # that a process waits for its caller's next request
_STALLED_SECONDS = 60  # without a hundredth of processor time: it waits for what never comes, however busy the machine


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
    processes = Processes(parent, partial(Decoding, config, parts))
    while True:
        processes.rest()
        data, memories, _, _ = socket.recv_fds(parent, HEAD_BYTES, 1)
        if not data:
            return
        if not memories:  # a message that came after the end
            continue
        job = Job(**json.loads(data))
        if not _supervise(parent, processes.take(job), job, memories[0]):
            return
        os.close(memories[0])


class Processes:
    """The process that answered the last request, for its caller's next one, and a fresh one for anybody's."""

    def __init__(self, parent: socket.socket, start: Callable[[], Decoding]) -> None:
        self._parent, self._start = parent, start
        self._last: Decoding | None = None
        self._fresh: Decoding | None = None

    def rest(self) -> None:
        """Before the next message is waited for: what takes time is done while nobody waits."""
        if self._last is not None and not self._last.may_be_kept():
            self._end_last()
        self._fresh = self._fresh or self._start()
        if self._last is not None and not select.select([self._parent], [], [], _KEPT_SECONDS)[0]:
            self._end_last()

    def take(self, job: Job) -> Decoding:
        """One that waits, and has seen no other caller's media."""
        if self._last is None or not self._last.may_take(job):
            self._end_last()
            self._last, self._fresh = self._fresh or self._start(), None
            while not self._last.may_take(job):  # it was killed meanwhile
                self._end_last()
                self._last = self._start()
        return self._last

    def _end_last(self) -> None:
        if self._last is not None:
            self._last.end()
            self._last = None


def _import_all() -> None:
    """Also what is else imported on demand: in the cage it cannot be any more."""
    for package in (av, encodings):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", ".datasets", ".mbcs", ".oem")):
                importlib.import_module(module.name)
    Image.init()
    frame_decoder()


def _supervise(parent: socket.socket, decoding: Decoding, job: Job, memory: int) -> bool:
    """Tell the other side how one request ended; False if that is gone."""
    was_fresh = not decoding.requests
    decoding.hand_over(job, memory)
    killed = ""
    spent, stalled = 0.0, time.monotonic()  # its processor time, which has limits; since when it is the same
    while not killed:
        ready, _, _ = select.select([decoding.socket, parent], [], [], 1.0)
        if decoding.socket in ready:
            break
        if ready:
            if not parent.recv(HEAD_BYTES):
                return False  # it dies with this process
            killed = "cancelled"
        elif decoding.takes_too_long():
            killed = "too long"
        elif (now := decoding.processor_seconds()) > spent:
            spent, stalled = now, time.monotonic()
        elif time.monotonic() > stalled + _STALLED_SECONDS:
            killed = "too long"
    answered = not killed and decoding.has_answered()
    told = {"killed": killed, "status": 0 if answered else decoding.end(), "was_fresh": was_fresh}
    parent.send(json.dumps(told).encode())
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
