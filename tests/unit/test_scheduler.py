"""Iteration by iteration, with a runner whose every score is a known function of its slot's content."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from videollama_core.generation.onnx_runner import HostScores
from videollama_core.generation.scheduler import GenerationRequest, Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.generation.vllm_scheduler import VllmSteps
from videollama_core.protocol.errors import Cancelled, InvalidRequest, Overloaded, PromptTooLong, StageFailed
from videollama_core.protocol.messages import ResolvedSampling

VOCAB = 50
END = 49


class CountingRunner:
    """The next token is (sum of the slot's ids + its length) modulo 48; so an answer tells the whole history."""

    def __init__(self, num_slots: int = 4, max_length: int = 64) -> None:
        self.num_slots, self.max_length, self.vocab_size = num_slots, max_length, VOCAB
        self.content: list[list[int]] = [[] for _ in range(num_slots)]
        self.batches: list[int] = []
        self.chunks: list[int] = []
        self.poison: int | None = None  # a decode step that meets this token fails

    def _scores(self, slot: int) -> np.ndarray:
        scores = np.zeros(VOCAB, np.float32)
        scores[(sum(self.content[slot]) + len(self.content[slot])) % 48] = 1
        return scores

    def prefill(self, slot, ids, media, visible):
        self.chunks.append(len(ids))
        self.content[slot] += ids.tolist()
        return self._scores(slot)

    def decode(self, slots, tokens):
        self.batches.append(len(slots))
        if self.poison in tokens:
            raise RuntimeError("poisoned")
        for slot, token in zip(slots, tokens, strict=True):
            self.content[slot].append(token)
        return HostScores(np.stack([self._scores(slot) for slot in slots]))

    def free(self, slot):
        self.content[slot] = []


def scheduler_on(runner: CountingRunner, max_waiting: int = 128, prefill_chunk: int = 512) -> Scheduler:
    return Scheduler(SlotSteps(runner, prefill_chunk), max_waiting)


class Listener:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.error = None
        self.last = False
        self.ended = threading.Event()

    def step(self, step) -> None:
        self.ids.append(step.token)
        self.last = step.last
        if step.last:
            self.ended.set()

    def fail(self, error) -> None:
        self.error = error
        self.ended.set()


def request(name: str, ids: list[int], tokens: int = 8, **more):
    listener = Listener()
    sampling = ResolvedSampling(tokens, True, 1.0, 0, 1.0, 1.0, 0)
    made = GenerationRequest(name, np.array(ids, np.int64), sampling, ((END,),), listener.step, listener.fail, **more)
    return made, listener


def expected(ids: list[int], tokens: int) -> list[int]:
    content, answer = list(ids), []
    for _ in range(tokens):
        answer.append((sum(content) + len(content)) % 48)
        content.append(answer[-1])
    return answer


def run(scheduler: Scheduler, iterations: int = 200) -> None:
    for _ in range(iterations):
        if not (scheduler.num_running or scheduler.num_waiting):
            return
        scheduler.iterate()
    raise AssertionError("requests are left")


def test_requests_share_steps_and_answer_as_alone():
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
    """At most the iteration under way is still counted: one step, where two are allowed."""
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


def test_a_caller_that_left_frees_the_slot_running_or_waiting():
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


def test_of_those_that_wait_long_one_is_asked_before_each_iteration_whether_its_caller_left():
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


def test_a_listener_that_fails_loses_only_its_own_request():
    scheduler = scheduler_on(CountingRunner())

    def burst(_) -> None:
        raise ConnectionError("gone")

    made, _ = request("broken", [1])
    scheduler.submit(GenerationRequest(**{**made.__dict__, "on_step": burst}))
    good, listener = request("good", [2])
    scheduler.submit(good)
    run(scheduler)
    assert listener.ids == expected([2], 8)


def test_bad_requests_are_refused_at_once():
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
    with pytest.raises(Overloaded, match="2 requests wait"):
        scheduler.submit(request("three", [1])[0])


def test_media_rows_widen_the_allowed_ids():
    scheduler = scheduler_on(CountingRunner())
    scheduler.submit(request("media", [VOCAB + 1], media=np.zeros((2, 4), np.float32))[0])
    with pytest.raises(InvalidRequest, match="2 media rows"):
        scheduler.submit(request("beyond", [VOCAB + 2], media=np.zeros((2, 4), np.float32))[0])


def contrasted(name: str, tokens: int, prompt=(1, VOCAB, VOCAB + 1, 3), **more):
    """About two media rows, behind which lie those of noised pixels."""
    made, listener = request(name, list(prompt), tokens, media=np.zeros((4, 4), np.float32), **more)
    made.sampling = replace(made.sampling, vcd_alpha=1.0, vcd_beta=0.0)
    return made, listener


def expected_contrast(tokens: int, prompt=(1, VOCAB, VOCAB + 1, 3)) -> list[int]:
    """Two forward passes of CountingRunner's rule: the best of 2 * plain - noised, the first of equals."""
    plain, answer = list(prompt), []
    noised = [token + 2 if token >= VOCAB else token for token in prompt]
    for _ in range(tokens):
        scores = np.zeros(VOCAB)
        scores[(sum(plain) + len(plain)) % 48] += 2
        scores[(sum(noised) + len(noised)) % 48] -= 1
        answer.append(int(scores.argmax()))
        plain.append(answer[-1])
        noised.append(answer[-1])
    return answer


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
def test_short_slots_hold_nobody_up_for_ever(num_slots):
    scheduler = scheduler_on(CountingRunner(num_slots=num_slots))
    listeners = []
    for number in range(12):
        made, listener = contrasted(f"{number}", 5) if number % 3 else request(f"{number}", [7], tokens=5)
        scheduler.submit(made)
        listeners.append(listener)
    run(scheduler)
    for number, listener in enumerate(listeners):
        assert listener.ids == (expected_contrast(5) if number % 3 else expected([7], 5))


def test_who_needs_two_slots_is_not_overtaken():
    scheduler = scheduler_on(CountingRunner(num_slots=2))
    for made, _ in (request("first", [1], tokens=6), contrasted("second", 3), request("third", [1], tokens=3)):
        scheduler.submit(made)
    for _ in range(4):
        scheduler.iterate()
        assert scheduler.num_running == 1 and scheduler.num_waiting == 2
    run(scheduler)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_a_stop_frees_both_slots(iterations):
    """While it is taken in, between its two prompts, and while it answers."""
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


def test_a_contrast_that_fails_fails_alone_and_frees_both_slots():
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


def test_the_thread_sleeps_when_idle_and_close_ends_what_runs():
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
