"""Visual contrastive decoding in the scheduler: two slots and two sequences for one answer."""

import numpy as np
import pytest

from counting_runner import VOCAB, CountingRunner, contrasted, expected, expected_contrast, request, run, scheduler_on
from videollama_core.generation.scheduler import Scheduler
from videollama_core.generation.vllm_runner import VllmSteps
from videollama_core.protocol.errors import Cancelled, InvalidRequest, StageFailed


def test_a_contrast_answers_from_two_sequences_beside_others():
    scheduler = scheduler_on(CountingRunner(), prefill_chunk=3)
    made, listener = contrasted("two", 12)
    plain, other = request("one", [5], tokens=12)
    scheduler.submit(made)
    scheduler.submit(plain)
    scheduler.iterate()
    assert sorted(map(len, scheduler.steps.runner.content)) == [0, 0, 0, 3]  # one chunk of one prompt, as ever
    run(scheduler)
    assert listener.ids == expected_contrast(12) and other.ids == expected([5], 12)
    assert max(scheduler.steps.runner.batches) == 3 and scheduler.steps.runner.content == [[], [], [], []]


@pytest.mark.parametrize("num_slots", [2, 3, 5])
def test_a_contrast_is_not_starved_by_short_requests(num_slots):
    scheduler = scheduler_on(CountingRunner(num_slots=num_slots))
    listeners = []
    for number in range(12):
        made, listener = contrasted(f"{number}", 5) if number % 3 else request(f"{number}", [7], tokens=5)
        scheduler.submit(made)
        listeners.append(listener)
    run(scheduler)
    for number, listener in enumerate(listeners):
        assert listener.ids == (expected_contrast(5) if number % 3 else expected([7], 5))


def test_a_request_for_two_slots_is_not_overtaken():
    scheduler = scheduler_on(CountingRunner(num_slots=2))
    for made, _ in (request("first", [1], tokens=6), contrasted("second", 3), request("third", [1], tokens=3)):
        scheduler.submit(made)
    for _ in range(4):
        scheduler.iterate()
        assert scheduler.num_running == 1 and scheduler.num_waiting == 2
    run(scheduler)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_a_stop_frees_both_slots(iterations):
    """During prefill, between its two prompts, and during decoding."""
    scheduler = scheduler_on(CountingRunner(num_slots=2))
    made, listener = contrasted("gone", 50)
    waiting, next_listener = contrasted("next", 4)
    scheduler.submit(made)
    scheduler.submit(waiting)
    for _ in range(iterations):
        scheduler.iterate()
    scheduler.stop("gone")
    run(scheduler)
    assert isinstance(listener.error, Cancelled) and next_listener.ids == expected_contrast(4)
    assert scheduler.steps.runner.content == [[], []]


def test_a_failing_contrast_fails_alone_and_frees_both_slots():
    runner = CountingRunner()
    scheduler = scheduler_on(runner)
    bad, bad_listener = contrasted("bad", 10)
    good, good_listener = request("good", [8], tokens=10)
    runner.poison = expected_contrast(3)[2]
    assert runner.poison not in expected([8], 10)
    scheduler.submit(bad)
    scheduler.submit(good)
    run(scheduler)
    assert isinstance(bad_listener.error, StageFailed) and good_listener.ids == expected([8], 10)
    assert runner.content == [[], [], [], []]


def test_a_contrast_that_cannot_run_is_refused_at_once():
    with pytest.raises(InvalidRequest, match="two slots"):
        scheduler_on(CountingRunner(num_slots=1)).submit(contrasted("a", 1)[0])
    with pytest.raises(InvalidRequest, match="TensorRT and vLLM do not"):
        Scheduler(VllmSteps(CountingRunner())).submit(contrasted("a", 1)[0])
    scheduler = scheduler_on(CountingRunner())
    odd, _ = contrasted("odd", 1)
    odd.media = np.zeros((3, 4), np.float32)
    without, _ = contrasted("without", 1, prompt=(1, 2))
    without.media = None
    for made in (odd, without):
        with pytest.raises(InvalidRequest, match="as many of noised pixels"):
            scheduler.submit(made)
    with pytest.raises(InvalidRequest, match="2 media rows"):  # the noised half is nobody's to name
        scheduler.submit(contrasted("beyond", 1, prompt=(1, VOCAB + 2))[0])
