"""The media cache: keyed by the whole digest of everything that decides the value, computed once, bounded, and isolated from others' failures."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollama_core.contrast import Noise
from videollama_core.engines.media_cache import ENTRY_BYTES, MediaCache, media_key
from videollama_core.protocol.errors import Cancelled, StageFailed, UnreadableMedia

BYTES = st.binary(max_size=4)
TIMES = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.0, 1.5, 15.0]))
NOISES = st.one_of(st.none(), st.builds(Noise, st.integers(0, 2), st.integers(0, 2)))
REQUESTS = st.tuples(BYTES, st.sampled_from(["video", "image"]), st.lists(BYTES, max_size=3), TIMES, TIMES, NOISES)


def key(request) -> bytes:
    checkpoint, kind, files, start, end, noise = request
    return media_key(checkpoint, kind, files, start=start, end=end, noise=noise)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(REQUESTS, REQUESTS)
def test_only_equal_requests_share_a_key(one, other):
    """Small alphabets, so that parts which look the same when joined are drawn often."""
    assert (key(one) == key(other)) == (repr(one) == repr(other)) and len(key(one)) == 32


@settings(max_examples=50, derandomize=True, database=None, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_moved_or_changed_byte_changes_the_key(media, data):
    place = data.draw(st.integers(0, len(media) - 1))
    changed = bytearray(media)
    changed[place] ^= data.draw(st.integers(1, 255))
    keys = [media_key(b"", "frames", files) for files in ([media], [bytes(changed)], [media[:place], media[place:]])]
    assert len(set(keys)) == 3


def test_every_option_counts():
    plain = {"start": None, "end": None, "noise": None, "decoder": "pyav"}
    others = [{"start": 0.0}, {"end": 0.0}, {"noise": Noise(1, 0)}, {"decoder": "decord"}, {"decoder": None}]
    asked = [("a", "video", {}), ("b", "video", {}), ("a", "image", {}), *(("a", "video", more) for more in others)]
    keys = {media_key(one.encode(), kind, [b"x"], **plain | more) for one, kind, more in asked}
    assert len(keys) == len(asked)


def table(value: int, size: int = 4) -> np.ndarray:
    return np.full(size, value, np.float32)


def test_a_key_that_matches_only_in_its_first_64_bits_is_a_miss():
    """Triton's cache compared 64 bits of a non-cryptographic hash: a crafted file got another file's answer."""
    cache, victim = MediaCache(), hashlib.sha256(b"victim").digest()
    for place in (0, 8, 31):
        crafted = bytearray(victim)
        crafted[place] ^= 1
        cache.get(bytes(crafted), lambda _: table(666))
    value, was_kept = cache.get(victim, lambda _: table(1))
    assert value[0] == 1 and not was_kept


def test_only_the_newest_entries_are_kept():
    size, made = table(0).nbytes + ENTRY_BYTES, []

    def make(value):
        made.append(value)
        return table(value)

    cache = MediaCache(3 * size)
    for value in (1, 2, 3, 1, 4, 2, 1):
        assert cache.get(bytes([value]), lambda _, value=value: make(value))[0][0] == value
    assert made == [1, 2, 3, 4, 2]  # 4 put 2 out, which 1 had been asked after; 2 then put 3 out
    assert (cache.hits, cache.misses, cache.evictions, cache.bytes, len(cache)) == (2, 5, 2, 3 * size, 3)
    assert cache.get(b"large", lambda _: table(5, 3 * size))[0][0] == 5 and cache.bytes == 3 * size
    nothing = MediaCache(0)
    assert [nothing.get(b"a", lambda _: table(1))[1] for _ in range(2)] == [False, False] and nothing.bytes == 0


class Work:
    """A slow computation that several callers share; it continues when `go` is set."""

    def __init__(self, *endings) -> None:
        self.endings, self.runs, self.go = list(endings), 0, threading.Event()

    def __call__(self, is_cancelled):
        self.runs += 1
        ending = self.endings.pop(0)
        assert self.go.wait(10)
        if isinstance(ending, Exception):
            raise ending
        return ending


def ask_together(cache, work, cancellations):
    """Answers or errors of callers with one key, the first of whom leads."""

    def ask(is_cancelled):
        try:
            return cache.get(b"key", work, is_cancelled)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(cancellations)) as pool:
        running = [pool.submit(ask, cancellations[0])]
        while not work.runs:
            time.sleep(0.001)
        running += [pool.submit(ask, one) for one in cancellations[1:]]
        while cache._flights[b"key"].waiting < len(cancellations) - 1:
            time.sleep(0.001)
        work.go.set()
        return [one.result(10) for one in running]


def never() -> bool:
    return False


def test_ten_callers_wait_for_one():
    cache, work = MediaCache(), Work(table(1))
    answers = ask_together(cache, work, [never] * 10)
    assert work.runs == 1 and sorted(was_kept for _, was_kept in answers) == [False] + [True] * 9
    assert len({id(value) for value, _ in answers}) == 1 and (cache.hits, cache.misses) == (9, 1)


def test_a_failing_leader_fails_nobody_else():
    cache, work = MediaCache(), Work(StageFailed("broken"), table(1))
    first, *others = ask_together(cache, work, [never] * 10)
    assert isinstance(first, StageFailed) and work.runs == 2
    assert sorted(was_kept for _, was_kept in others) == [False] + [True] * 8


def test_a_refusal_concerns_the_media_and_reaches_every_caller():
    """Otherwise each of 64 callers would have the same bomb decoded again, one after the other."""
    cache, work = MediaCache(), Work(UnreadableMedia("a bomb"))
    errors = ask_together(cache, work, [never] * 10)
    assert work.runs == 1 and {(type(error), str(error)) for error in errors} == {(UnreadableMedia, "a bomb")}
    assert len({id(error) for error in errors}) == 10 and not len(cache)


def test_a_cancelled_caller_stops_waiting_and_work_ends_when_all_are_cancelled():
    cache, started, left, abandoned = MediaCache(), threading.Event(), threading.Event(), []

    def work(is_abandoned):
        started.set()
        abandoned.append(is_abandoned())
        while not is_abandoned():
            time.sleep(0.001)
        raise Cancelled("all have left")

    def leave_by(event):
        with pytest.raises(Cancelled):
            cache.get(b"key", work, event.is_set)

    other = threading.Event()
    threads = [threading.Thread(target=leave_by, args=(event,)) for event in (left, other)]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    while not cache._flights[b"key"].waiting:
        time.sleep(0.001)
    left.set()  # the leader's work goes on for the other
    time.sleep(0.05)
    assert threads[0].is_alive() and threads[1].is_alive()
    other.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert abandoned == [False] and not cache._flights
    assert cache.get(b"key", lambda _: table(1))[0][0] == 1


def test_values_computed_elsewhere_are_cached_as_well():
    """A caller that computes in parts stores its value; of two computed at the same time, all callers get one."""
    cache: MediaCache = MediaCache(2 * (8 + ENTRY_BYTES))
    first, second = np.zeros(1), np.zeros(1)
    assert cache.known(b"a") is None
    assert cache.keep(b"a", first) is first and cache.keep(b"a", second) is first and cache.known(b"a") is first
    assert (cache.hits, cache.misses) == (1, 1) and cache.bytes == 8 + ENTRY_BYTES
    large = np.zeros(1000)
    assert cache.keep(b"b", large) is large and cache.known(b"b") is None
