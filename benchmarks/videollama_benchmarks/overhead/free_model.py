"""An engine of the language model that costs nothing.

Its ids are a walk through the vocabulary that depends on the prompt alone, so that whoever reads an answer can tell whether
an id is missing, comes twice, or belongs to somebody else.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from videollama_core.generation.request import GenerationRequest, Running
from videollama_core.generation.steps import Advance, Counters, Outcome

STEP_VARIABLE = "VL2_FREE_MODEL_STEP"  # seconds that a decoding step takes; 0 is as fast as the scheduler asks
SLOTS = 64
FIRST, COUNT = 300, 97  # ids that are ordinary text in every vocabulary here


def expected_ids(first: int, count: int) -> list[int]:
    """The whole answer that begins with an id."""
    return [FIRST + (first - FIRST + place) % COUNT for place in range(count)]


class FreeSteps:
    """Every step of every request at once."""

    def __init__(self, max_length: int, vocab_size: int, step_seconds: float = 0.0) -> None:
        self.num_slots, self.max_length, self.vocab_size = SLOTS, max_length, vocab_size
        self._step, self._due = step_seconds, 0.0

    def check(self, request: GenerationRequest) -> None:
        """It takes every request."""

    def free(self, slot: int) -> None:
        """There is nothing to forget."""

    def prefill(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        for one in running:
            if not one.is_whole:
                one.prefilled = sum(map(len, one.prompts))
                yield Advance(one, token=FIRST + int(np.sum(one.request.input_ids)) % COUNT)

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        ready = [one for one in running if one.sampler.generated]
        counters.count_step(len(ready))
        if self._step:
            self._due = max(self._due + self._step, time.monotonic())
            time.sleep(max(0.0, self._due - time.monotonic()))
        for one in ready:
            yield Advance(one, token=FIRST + (one.sampler.generated[-1] - FIRST + 1) % COUNT)
