"""The fork server of the decoding processes: `python -m videollama_server.sandbox.spawner SOCKET CONFIG`.

It imports everything they need and never reads media itself. It serves one request at a time: a message brings the memory
that holds the request, which goes, with its limits, to a process forked in advance (decoding.py) or to the one that answered
the same caller's last request. The process is supervised, and the outcome is sent back. Any message in the meantime, or the
end of the other side, kills the process.
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
from videollama_server.sandbox import confinement
from videollama_server.sandbox.decoding import HEAD_BYTES, Decoding, Job

_KEPT_SECONDS = 5.0  # how long a process is kept for its caller's next request
_STALLED_SECONDS = 60  # without using any processor time: even on a busy machine, it is blocked for ever


def main(arguments: list[str]) -> None:
    """Serve until the other side is gone."""
    log_to_stderr(logging.WARNING, "%(asctime)s %(name)s %(levelname)s %(message)s", "preprocess")
    parent = socket.socket(fileno=int(arguments[0]))
    config = ModelConfig.from_dict(json.loads(arguments[1]))
    _import_all()
    keep_freed()
    states = confinement.tried()
    parent.send(json.dumps(confinement.for_video_files(states)).encode())
    parts = tuple(part for part, state in states.items() if state == confinement.IN_FORCE)
    gc.collect()
    gc.freeze()  # keeps shared pages shared after a fork
    processes = Processes(parent, partial(Decoding, config, parts))
    while True:
        processes.rest()
        data, memories, _, _ = socket.recv_fds(parent, HEAD_BYTES, 1)
        if not data:
            return
        if not memories:  # a cancellation that came after the end
            continue
        job = Job(**json.loads(data))
        if not _supervise(parent, processes.take(job), job, memories[0]):
            return
        os.close(memories[0])


class Processes:
    """The process that answered the last request, for its caller's next one, and a fresh one for any caller."""

    def __init__(self, parent: socket.socket, start: Callable[[], Decoding]) -> None:
        self._parent, self._start = parent, start
        self._last: Decoding | None = None
        self._fresh: Decoding | None = None

    def rest(self) -> None:
        """Do the slow work while no request is waiting: end the last process if it must go, and fork a fresh one."""
        if self._last is not None and not self._last.may_be_kept():
            self._end_last()
        self._fresh = self._fresh or self._start()
        if self._last is not None and not select.select([self._parent], [], [], _KEPT_SECONDS)[0]:
            self._end_last()

    def take(self, job: Job) -> Decoding:
        """Return an idle process that has not seen another caller's media."""
        if self._last is None or not self._last.may_take(job):
            self._end_last()
            self._last, self._fresh = self._fresh or self._start(), None
            while not self._last.may_take(job):  # it has been killed in the meantime
                self._end_last()
                self._last = self._start()
        return self._last

    def _end_last(self) -> None:
        if self._last is not None:
            self._last.end()
            self._last = None


def _import_all() -> None:
    """Import everything that is otherwise imported on demand, which the confinement prevents."""
    for package in (av, encodings):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", ".datasets", ".mbcs", ".oem")):
                importlib.import_module(module.name)
    Image.init()
    importlib.import_module("PIL.ImageCms")  # converts CIELAB
    frame_decoder()


def _supervise(parent: socket.socket, decoding: Decoding, job: Job, memory: int) -> bool:
    """Run one request and report its outcome to the other side; return False if that is gone."""
    was_fresh = not decoding.requests
    decoding.hand_over(job, memory)
    killed = ""
    spent, stalled = 0.0, time.monotonic()  # its processor time; since when it has not changed
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
    report = {"killed": killed, "status": 0 if answered else decoding.end(), "was_fresh": was_fresh}
    parent.send(json.dumps(report).encode())
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
