"""Iteration-level scheduling: which requests share a step, wait, are stopped, or are refused."""

import threading
import time

import numpy as np
import pytest

from counting_runner import VOCAB, CountingRunner, expected, request, run, scheduler_on
from videollama_core.generation.scheduler import GenerationRequest
from videollama_core.protocol.errors import Cancelled, InvalidRequest, Overloaded, PromptTooLong, StageFailed


def test_requests_that_share_steps_answer_as_if_alone():
    scheduler = scheduler_on(CountingRunner(), prefill_chunk=4)
    listeners = {}
    for number in range(8):
        prompt = list(range(number + 1, number + 1 + 3 * number + 1))
        made, listeners[number] = request(str(number), prompt, tokens=12)
        scheduler.submit(made)
    run(scheduler)
    for number, listener in listeners.items():
        assert listener.ids == expected(list(range(number + 1, number + 1 + 3 * number + 1)), 12)
        assert listener.last and listener.error is None
    assert scheduler.counters.most_in_one_step == 4
    assert max(scheduler.steps.runner.chunks) == 4  # a long prompt goes in by chunks
    assert scheduler.counters.decode_steps < 8 * 12 / 2


def test_a_long_prompt_does_not_stall_the_others():
    scheduler = scheduler_on(CountingRunner(), prefill_chunk=4)
    first, listener = request("short", [1], tokens=20)
    scheduler.submit(first)
    scheduler.iterate()
    scheduler.submit(request("long", [1] * 40)[0])
    before = len(listener.ids)
    for _ in range(5):
        scheduler.iterate()
    assert len(listener.ids) == before + 5  # a token every iteration, prefill chunks between


def test_a_stop_frees_the_slot_before_the_next_step():
    """At most the iteration in progress still counts: one step, where two are allowed."""
    scheduler = scheduler_on(CountingRunner(num_slots=1))
    made, listener = request("gone", [1], tokens=50)
    waiting, next_listener = request("next", [2], tokens=3)
    scheduler.submit(made)
    scheduler.submit(waiting)
    for _ in range(5):
        scheduler.iterate()
    steps = len(listener.ids)
    scheduler.stop("gone")
    scheduler.iterate()
    assert len(listener.ids) == steps and isinstance(listener.error, Cancelled)
    run(scheduler)
    assert next_listener.ids == expected([2], 3)
    assert scheduler.counters.cancelled == 1


def test_a_cancelled_request_frees_its_slot_running_or_waiting():
    scheduler = scheduler_on(CountingRunner(num_slots=1))
    left = threading.Event()
    running, first = request("a", [1], tokens=50, is_cancelled=left.is_set)
    waiting, second = request("b", [1], tokens=50, is_cancelled=left.is_set)
    scheduler.submit(running)
    scheduler.submit(waiting)
    scheduler.iterate()
    left.set()
    scheduler.iterate()
    assert isinstance(first.error, Cancelled) and isinstance(second.error, Cancelled)
    assert scheduler.num_running == scheduler.num_waiting == 0 and scheduler.steps.runner.content == [[]]


def test_one_long_waiting_request_is_checked_for_cancellation_per_iteration():
    scheduler = scheduler_on(CountingRunner(num_slots=1))
    asked: list[str] = []

    def caller_of(name: str):
        return lambda: bool(asked.append(name)) or name == "d"

    waiting = [request(name, [1], tokens=50, is_cancelled=caller_of(name)) for name in "abcde"]
    for each, _ in waiting:
        scheduler.submit(each)
    scheduler.iterate()
    for _ in range(4):
        asked.clear()
        scheduler.iterate()
        assert len(asked) == 2 and "a" in asked
    assert isinstance(waiting[3][1].error, Cancelled) and scheduler.num_waiting == 3


def test_generation_ends_at_an_end_word_the_limit_or_a_full_context():
    scheduler = scheduler_on(CountingRunner(max_length=10))
    word = tuple(expected([3], 5)[2:4])
    made, by_word = request("word", [3], tokens=30)
    scheduler.submit(GenerationRequest(**{**made.__dict__, "end_words": (word,)}))
    limited, by_limit = request("limit", [3], tokens=5)
    scheduler.submit(limited)
    endless, by_context = request("context", [3], tokens=30)
    scheduler.submit(endless)
    run(scheduler)
    assert by_word.ids == expected([3], 4)
    assert by_limit.ids == expected([3], 5)
    assert len(by_context.ids) == 9  # 1 + 9 positions fill the context of 10


def test_one_failing_request_does_not_fail_its_neighbours():
    runner = CountingRunner()
    scheduler = scheduler_on(runner)
    bad, bad_listener = request("bad", [5], tokens=10)
    good, good_listener = request("good", [8], tokens=10)
    runner.poison = expected([5], 3)[2]
    assert runner.poison not in expected([8], 10)
    scheduler.submit(bad)
    scheduler.submit(good)
    run(scheduler)
    assert isinstance(bad_listener.error, StageFailed) and "poisoned" in str(bad_listener.error)
    assert good_listener.ids == expected([8], 10)


@pytest.mark.parametrize("call", ["on_step", "on_admitted", "is_cancelled"])
def test_a_failing_listener_loses_only_its_own_request(call):
    scheduler = scheduler_on(CountingRunner(num_slots=2))

    def burst(*_) -> None:
        raise ConnectionError("gone")

    made, broken = request("broken", [1])
    listeners = []
    scheduler.submit(GenerationRequest(**{**made.__dict__, call: burst}))
    for number in range(3):
        good, listener = request(f"good {number}", [2])
        scheduler.submit(good)
        listeners.append(listener)
    run(scheduler)
    assert all(listener.ids == expected([2], 8) for listener in listeners) and not broken.ids
    assert call == "on_step" or isinstance(broken.error, StageFailed | Cancelled)


def test_an_engine_failure_reaches_every_request_and_later_ones_are_answered():
    scheduler = scheduler_on(CountingRunner(num_slots=1))
    scores, scheduler.steps.runner._scores = scheduler.steps.runner._scores, lambda slot: "none"
    scheduler.steps.runner.decode = lambda slots, tokens: "no scores"
    told = [request(name, [1], tokens=50) for name in ("runs", "waits")]
    for made, _ in told:
        scheduler.submit(made)
    scheduler.start()
    for _, listener in told:
        assert listener.ended.wait(5) and isinstance(listener.error, StageFailed)
    del scheduler.steps.runner.decode
    scheduler.steps.runner._scores = scores
    made, listener = request("next", [3], tokens=4)
    scheduler.submit(made)
    assert listener.ended.wait(5) and listener.ids == expected([3], 4)
    scheduler.close()


def test_invalid_requests_are_refused_at_once():
    scheduler = scheduler_on(CountingRunner(num_slots=1, max_length=16), max_waiting=2)
    for ids, error in (
        ([], InvalidRequest),
        ([-1], InvalidRequest),
        ([VOCAB], InvalidRequest),
        ([1] * 16, PromptTooLong),
    ):
        with pytest.raises(error):
            scheduler.submit(request("bad", ids)[0])
    scheduler.submit(request("one", [1])[0])
    with pytest.raises(InvalidRequest, match="already running"):
        scheduler.submit(request("one", [1])[0])
    scheduler.submit(request("two", [1])[0])
    with pytest.raises(Overloaded, match="2 requests are waiting"):
        scheduler.submit(request("three", [1])[0])


def test_media_rows_widen_the_allowed_ids():
    scheduler = scheduler_on(CountingRunner())
    scheduler.submit(request("media", [VOCAB + 1], media=np.zeros((2, 4), np.float32))[0])
    with pytest.raises(InvalidRequest, match="2 media rows"):
        scheduler.submit(request("beyond", [VOCAB + 2], media=np.zeros((2, 4), np.float32))[0])


def test_the_thread_sleeps_when_idle_and_close_ends_running_requests():
    scheduler = scheduler_on(CountingRunner(max_length=10**6))
    scheduler.start()
    made, listener = request("done", [1])
    scheduler.submit(made)
    assert listener.ended.wait(5)
    time.sleep(0.05)
    idle = scheduler.counters.iterations
    time.sleep(0.1)
    assert scheduler.counters.iterations == idle
    endless, left = request("endless", [1], tokens=10**6)
    scheduler.submit(endless)
    scheduler.close()
    assert left.ended.wait(5) and isinstance(left.error, StageFailed)
    with pytest.raises(StageFailed):
        scheduler.submit(request("late", [1])[0])
