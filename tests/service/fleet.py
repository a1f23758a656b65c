"""Several real servers behind one address, under load, while one is killed, one drained and one added."""

import itertools
import os
import signal
import struct
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service.servers import Server, children, start, stop
from videollama_server.ports import choose_ports

WORKERS = 6
PAUSE_SECONDS = (
    0.25  # of a worker after an answer: what is waited for, as a server that starts, needs the processor too
)
ROUNDS = 15  # pairs of questions in each state of the fleet, at least
NOTICE_SECONDS = 3.0  # until whoever balances has looked at its servers again
STATE_SECONDS = 120.0
DRAIN = ("--drain-delay-seconds", 3)


@dataclass(frozen=True)
class Asked:
    """A question and its outcome.

    Attributes:
        number: 1 or 2, of the questions about one medium.
        error: what went wrong; "" for an answer.
        where: the server that had it, as the asker calls servers; "" where it did not get so far.
    """

    began: float
    ended: float
    number: int
    was_cached: bool = False
    error: str = ""
    where: str = ""


class AskFailed(Exception):
    def __init__(self, error: Exception, where: str) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.where = where


@dataclass
class Load:
    """Workers who ask two questions about each of a series of new media.

    Args:
        ask: (media, question) -> whether what is known about the media was there, and where. Raises: AskFailed.
    """

    clip: bytes
    ask: Callable[[bytes, str], tuple[bool, str]]
    asked: list[Asked] = field(default_factory=list)
    pairs: list[tuple[float, float, bool]] = field(default_factory=list)  # first began, second ended, second was cached
    _numbers: itertools.count = field(default_factory=itertools.count)
    _ending: threading.Event = field(default_factory=threading.Event)

    def _work(self) -> None:
        while not self._ending.is_set():
            media = self.clip + struct.pack(">I4sQ", 16, b"free", next(self._numbers))  # a box that says nothing
            first = self._ask_once(media, 1)
            second = self._ask_once(media, 2)
            if not first.error and not second.error:
                self.pairs.append((first.began, second.ended, second.was_cached))

    def _ask_once(self, media: bytes, number: int) -> Asked:
        began = time.monotonic()
        try:
            cached, where = self.ask(media, f"What happens, part {number}?")
            asked = Asked(began, time.monotonic(), number, cached, where=where)
        except AskFailed as failure:
            asked = Asked(began, time.monotonic(), number, error=str(failure), where=failure.where)
        self.asked.append(asked)
        self._ending.wait(PAUSE_SECONDS)
        return asked

    def go_on(self) -> None:
        """Waits until every state has had enough questions."""
        time.sleep(NOTICE_SECONDS)
        now, deadline = time.monotonic(), time.monotonic() + STATE_SECONDS
        while sum(began > now for began, _, _ in list(self.pairs)) < ROUNDS:
            assert time.monotonic() < deadline, f"too few answers; the last: {self.asked[-3:]}"
            time.sleep(0.05)

    @contextmanager
    def running(self):
        threads = [threading.Thread(target=self._work) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in threads:
                thread.join(60)


class Fleet:
    """Three servers, and the ports of a fourth that is added later."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self._bundle, self._folder = bundle, folder
        self.servers: list[Server] = []
        self.spare = choose_ports("127.0.0.1", {"--grpc-port": 0, "--http-port": 0})
        for _ in range(3):
            self._start()

    def _start(self, *options: object) -> Server:
        log = self._folder / f"{len(self.servers)}.log"
        self.servers.append(start(self._bundle, log, "--media-cache-megabytes", 256, *DRAIN, *options))
        return self.servers[-1]

    def add(self) -> Server:
        return self._start("--grpc-port", self.spare[0], "--http-port", self.spare[1])

    @staticmethod
    def kill(server: Server) -> None:
        """Like a machine that disappears: none of its processes says goodbye."""
        for pid in children(server.process.pid, "."):  # each leads a group: Triton that of its stages
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        server.process.kill()
        server.process.communicate()

    def close(self) -> None:
        for server in self.servers:
            if server.process.poll() is None:
                stop(server)


def live_through_changes(load: Load, fleet: Fleet, killed_name: str, added: Callable[[Server], None]) -> None:
    """Kill, drain and add under load: only what ran on the killed server fails, and second questions hit the cache.

    Args:
        killed_name: how the asker calls fleet.servers[0].
        added: tells whoever balances of a new server.
    """
    with load.running():
        load.go_on()
        killed = time.monotonic()
        fleet.kill(fleet.servers[0])
        dead = time.monotonic()
        load.go_on()
        drained = time.monotonic()
        assert stop(fleet.servers[1]) == 0
        load.go_on()
        new = fleet.add()
        came = time.monotonic()
        added(new)
        load.go_on()
    failed = [asked for asked in load.asked if asked.error]
    # A failure is of a question that ran on the killed one when it was killed, which took from `killed` to `dead`.
    assert all(one.began < dead and one.ended > killed and one.where == killed_name for one in failed), (killed, failed)
    assert len(failed) <= WORKERS
    # It had its share; a question that had no text yet, or had not reached it, was answered elsewhere.
    share = [one for one in load.asked if one.ended < killed]
    assert sum(one.where == killed_name for one in share) > len(share) / 10
    # A change moves media: pairs with a change between their questions, or while nobody has noticed it, tell nothing.
    changes = (
        (killed, killed + NOTICE_SECONDS),
        (drained, drained + NOTICE_SECONDS),
        (came - NOTICE_SECONDS, came + NOTICE_SECONDS),
    )
    quiet = [
        cached
        for began, ended, cached in load.pairs
        if not any(began < end and ended > begin for begin, end in changes)
    ]
    assert len(quiet) >= 3 * ROUNDS
    assert sum(quiet) >= 0.95 * len(quiet), (sum(quiet), len(quiet))
    assert not any(asked.was_cached for asked in load.asked if asked.number == 1)  # what is counted can be missed
    running = sum(one.began < killed < one.ended for one in load.asked)
    print(
        f"{len(load.asked)} questions, {running} running at the kill, {len(failed)} failed, {sum(quiet)} of {len(quiet)} second questions known"
    )
