"""One caller's media may share a process, one after another: what is still isolated, and what a process may not keep."""

import os
import time
from pathlib import Path

import pytest

from security.media_cases import clip
from security.soak import name_of
from security.test_confinement import CONFIG, CONFINED, children, hostile
from videollama_core.media.video import Segment
from videollama_core.protocol import limits
from videollama_core.protocol.errors import Cancelled, StageFailed, UnreadableMedia
from videollama_server.sandbox.decoder import ConfinedDecoder
from videollama_server.sandbox.decoding import WAITING

pytestmark = pytest.mark.skipif(
    not CONFINED, reason="this kernel has no Landlock or seccomp: every request has its own process"
)
# In place of decoding: the number of the process, and of the requests that it has had, as the one value of a filterbank.
COUNTS = (
    "import numpy, os; from videollama_core.protocol.messages import EncoderInputs; preprocess.had = getattr(preprocess, 'had', 0) + 1; "
    "{}return EncoderInputs(numpy.zeros((0, 2, 2, 3), numpy.uint8), numpy.array([[os.getpid(), preprocess.had]], numpy.float32), "
    "numpy.zeros(0, numpy.int64), numpy.zeros(0))"
)


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """Starts decoders that count. `first`: what is done before; `setup`: at the start of what they are forked from."""
    started = []

    def start(first: str = "", setup: str = "") -> ConfinedDecoder:
        started.append(hostile(monkeypatch, tmp_path, COUNTS.format(first), setup))
        return started[-1]

    yield start
    for decoder in started:
        decoder.close()


def asked(decoder: ConfinedDecoder, caller: str = "", data: bytes = b"x") -> tuple[int, int]:
    """The process that answered, and how many requests it has had."""
    pid, had = decoder.prepare("image", [data], Segment(), caller=caller).filterbank[0]
    return int(pid), int(had)


def test_a_process_is_reused_for_one_caller_only(counting):
    decoder = counting()
    (first, _), (again, had) = asked(decoder, "one"), asked(decoder, "one")
    assert again == first and had == 2
    other, had = asked(decoder, "two")
    assert other != first and had == 1
    assert first not in children(decoder._process.pid)  # not even asleep
    back, had = asked(decoder, "one")
    assert back not in (first, other) and had == 1


def test_an_anonymous_request_has_its_own_process(counting):
    decoder = counting()
    replies = [asked(decoder, caller) for caller in ("", "", "one", "", "one")]
    assert len({pid for pid, _ in replies}) == len(replies) and {had for _, had in replies} == {1}


def test_a_process_that_refused_a_file_is_not_reused():
    decoder = ConfinedDecoder(CONFIG)
    try:
        for _ in range(3):
            decoder.prepare("video", [clip()], Segment(), caller="one")
            kept = children(decoder._process.pid)
            with pytest.raises(UnreadableMedia, match="not a video"):
                decoder.prepare("video", [b"text"], Segment(), caller="one")
            decoder.prepare("video", [clip()], Segment(), caller="one")
            assert len(set(kept) & set(children(decoder._process.pid))) <= 1  # the fresh one of before
    finally:
        decoder.close()


def test_a_crash_in_a_reused_process_is_retried_and_a_files_own_crash_is_reported(counting):
    decoder = counting("import ctypes; preprocess.had > 1 and ctypes.string_at(0); ")
    first, second = asked(decoder, "one"), asked(decoder, "one")
    assert first[0] != second[0] and second[1] == 1
    decoder = counting("import ctypes; ctypes.string_at(0); ")
    with pytest.raises(UnreadableMedia, match="SIGSEGV"):
        asked(decoder, "one")


def test_a_killed_process_affects_no_other(counting, monkeypatch):
    monkeypatch.setattr(limits, "PICTURE_SECONDS", limits.Limit("picture_seconds", 1, "seconds", "of a test"))
    decoder = counting("preprocess.had > 1 and exec('while True: pass'); ")
    spawner = decoder._process
    for _ in range(2):
        asked(decoder, "one")
        began = time.monotonic()
        with pytest.raises(Cancelled):
            decoder.prepare(
                "image", [b"x"], Segment(), lambda began=began: time.monotonic() < began + 0.3, caller="one"
            )
        asked(decoder, "one")
        with pytest.raises(UnreadableMedia, match="picture_seconds"):
            asked(decoder, "one")
    assert asked(decoder, "one")[1] == 1 and decoder._process is spawner and spawner.poll() is None


KEEPS = {
    "the memory of its request": "os.close = lambda file: None; ",
    "a thread": "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); ",
}


@pytest.mark.parametrize("what", KEEPS)
def test_a_process_that_keeps_something_is_not_reused(what, counting):
    decoder = counting(KEEPS[what])
    assert [asked(decoder, "one")[1] for _ in range(3)] == [1, 1, 1]


def test_reserved_memory_counts_in_the_next_request(counting):
    decoder = counting(
        "import mmap; preprocess.kept = [*getattr(preprocess, 'kept', []), "
        "mmap.mmap(-1, 800 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)]; "
    )
    with pytest.raises(StageFailed, match="Cannot allocate memory"):
        for _ in range(3):
            asked(decoder, "one")


def test_nothing_of_a_request_is_left_in_memory(counting, monkeypatch):
    made, create = [], os.memfd_create

    def kept(*words) -> int:
        file = create(*words)
        made.append(os.dup(file))
        return file

    decoder = counting()
    monkeypatch.setattr(os, "memfd_create", kept)
    asked(decoder, "one")
    (file,) = made
    assert os.fstat(file).st_size == 0
    os.close(file)


def test_each_request_has_its_own_time_limit_and_is_killed_beyond_it(counting, monkeypatch):
    monkeypatch.setattr(limits, "PICTURE_SECONDS", limits.Limit("picture_seconds", 1, "seconds", "of a test"))
    burn = "import time; end = time.process_time() + {}; [0 for _ in iter(lambda: time.process_time() < end, False)]; "
    decoder = counting(burn.format(0.7))
    assert {asked(decoder, "one")[0] for _ in range(4)} == {asked(decoder, "one")[0]}
    decoder = counting(
        "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN); preprocess.had > 1 and exec('while True: pass'); "
    )
    asked(decoder, "one")
    began = time.monotonic()
    with pytest.raises(UnreadableMedia, match="picture_seconds"):
        asked(decoder, "one")
    assert time.monotonic() - began < 30


def test_a_process_ends_at_its_limits_of_requests_memory_and_time(counting):
    change = "import videollama_server.sandbox.decoding as decoding; decoding._MOST_REQUESTS = 3"
    decoder = counting(setup=change)
    assert [asked(decoder, "one")[1] for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    decoder = counting("preprocess.held = bytearray(os.urandom(2**20)) * 100; ")
    assert [asked(decoder, "one")[1] for _ in range(3)] == [1, 1, 1]
    decoder = counting()
    kept = asked(decoder, "one")[0]
    deadline = time.monotonic() + 20
    while kept in children(decoder._process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_process_holds_only_its_own_socket(counting):
    """Another process is alive when it is forked; with that socket it could answer in its name."""
    paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    before = {os.readlink(path) for path in paths if os.path.lexists(path)}  # left open by other tests
    decoder = counting()
    for _ in range(3):
        asked(decoder, "one")
    spawner = decoder._process.pid
    deadline = time.monotonic() + 10
    while [*map(name_of, children(spawner))] != [WAITING] * 2 and time.monotonic() < deadline:  # named once it is ready
        time.sleep(0.01)
    assert len(children(spawner)) == 2
    for pid in children(spawner):
        links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert sum(link.startswith("socket") and link not in before for link in links) == 1, links
