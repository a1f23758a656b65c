"""The scheduler over an engine that schedules prefill and decoding itself, as vLLM does."""

import numpy as np

from videollama_core.generation.request import GenerationRequest
from videollama_core.generation.scheduler import Scheduler
from videollama_core.generation.vllm_runner import VllmSteps
from videollama_core.protocol.errors import StageFailed
from videollama_core.protocol.messages import ResolvedSampling


class Engine:
    """Gives two tokens of each request at every step: 1, 2, 3 and so on, whether or not the request has ended."""

    num_slots, max_length, vocab_size = 2, 64, 50

    def __init__(self) -> None:
        self.busy: dict[int, int] = {}
        self.broken = False

    def begin(self, slot, request):
        if request.input_ids[0] == 13:
            raise RuntimeError("refused")
        self.busy[slot] = 0

    def step(self):
        if self.broken:
            raise RuntimeError("engine died")
        tokens = [(slot, count + more) for slot, count in self.busy.items() for more in (1, 2)]
        self.busy = {slot: count + 2 for slot, count in self.busy.items()}
        return tokens

    def free(self, slot):
        self.busy.pop(slot, None)


def submit(scheduler, name, first=7, tokens=5):
    ids, errors = [], []
    sampling = ResolvedSampling(tokens, True, 1.0, 0, 1.0, 1.0, 0)
    scheduler.submit(
        GenerationRequest(
            name, np.array([first]), sampling, ((4, 5),), lambda step: ids.append(step.token), errors.append
        )
    )
    return ids, errors


def test_tokens_after_the_end_of_a_request_are_dropped():
    scheduler = Scheduler(VllmSteps(Engine()))
    by_word, _ = submit(scheduler, "a", tokens=30)
    by_limit, _ = submit(scheduler, "b", tokens=3)
    waiting, _ = submit(scheduler, "c", tokens=1)
    while scheduler.num_running or scheduler.num_waiting:
        scheduler.iterate()
    assert (by_word, by_limit, waiting) == ([1, 2, 3, 4, 5], [1, 2, 3], [1])
    assert scheduler.steps.runner.busy == {}
    counters = scheduler.counters
    assert (counters.iterations, counters.decode_steps, counters.generated_tokens) == (3, 3, 9)
    assert counters.most_in_one_step == 4


def test_a_refused_request_fails_alone_and_an_engine_failure_fails_all():
    scheduler = Scheduler(VllmSteps(Engine()))
    good, good_errors = submit(scheduler, "good", tokens=30)
    _, refused = submit(scheduler, "refused", first=13)
    scheduler.iterate()
    assert good == [1, 2] and not good_errors and "refused" in str(refused[0])
    scheduler.steps.runner.broken = True
    scheduler.iterate()
    assert isinstance(good_errors[0], StageFailed) and scheduler.num_running == 0
