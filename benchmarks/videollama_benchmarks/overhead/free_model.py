"""A language model engine that takes no time.

Its ids cycle through a part of the vocabulary from a start that depends on the prompt, so that a reader can tell whether an id is
missing, is repeated or belongs to another request.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from videollama_core.generation.request import GenerationRequest, Running
from videollama_core.generation.steps import Advance, Counters, Outcome

STEP_VARIABLE = "VL2_FREE_MODEL_STEP"  # seconds of a decoding step; 0: as fast as the scheduler runs
SLOTS = 64
FIRST, COUNT = 300, 97  # ids that are ordinary text in every vocabulary here


def expected_ids(first: int, count: int) -> list[int]:
    """The ids of an answer of `count` tokens that begins with `first`."""
    return [FIRST + (first - FIRST + place) % COUNT for place in range(count)]


class FreeSteps:
    """Steps of all requests at once, for the scheduler."""

    def __init__(self, max_length: int, vocab_size: int, step_seconds: float = 0.0) -> None:
        self.num_slots, self.max_length, self.vocab_size = SLOTS, max_length, vocab_size
        self._step, self._due = step_seconds, 0.0

    def check(self, request: GenerationRequest) -> None:
        """Accept every request."""

    def free(self, slot: int) -> None:
        """Do nothing: slots have no state."""

    def prefill(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        for entry in running:
            if not entry.is_whole:
                entry.prefilled = sum(map(len, entry.prompts))
                yield Advance(entry, token=FIRST + int(np.sum(entry.request.input_ids)) % COUNT)

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        ready = [entry for entry in running if entry.sampler.generated]
        counters.count_step(len(ready))
        if self._step:
            self._due = max(self._due + self._step, time.monotonic())
            time.sleep(max(0.0, self._due - time.monotonic()))
        for entry in ready:
            yield Advance(entry, token=FIRST + (entry.sampler.generated[-1] - FIRST + 1) % COUNT)
