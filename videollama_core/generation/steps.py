"""What runs a step: the scheduler knows the interface `Steps`; `SlotSteps` is prefill and decoding on a runner's slots."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from videollama_core.generation.onnx_runner import Runner
from videollama_core.generation.request import GenerationRequest, Running

logger = logging.getLogger(__name__)


@dataclass
class Counters:
    """What has happened since the start."""

    iterations: int = 0
    decode_steps: int = 0  # batched: one for all running requests
    generated_tokens: int = 0
    cancelled: int = 0
    most_in_one_step: int = 0

    def count_step(self, size: int) -> None:
        """A decoding step for `size` requests."""
        self.decode_steps += 1
        self.most_in_one_step = max(self.most_in_one_step, size)


@dataclass(frozen=True)
class Advance:
    """A request's next token, or the scores to choose it from, or both."""

    running: Running
    scores: np.ndarray | None = None  # float32 [vocab]
    token: int | None = None  # chosen already


@dataclass(frozen=True)
class Failure:
    """A request that cannot go on."""

    running: Running
    error: Exception


Outcome = Advance | Failure


class Steps(Protocol):
    """Takes prompts in and goes on with requests that hold slots.

    The scheduler acts on each outcome before it asks for the next: a request may have ended in between.
    """

    @property
    def num_slots(self) -> int: ...

    @property
    def max_length(self) -> int:
        """Positions that fit a slot."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def check(self, request: GenerationRequest) -> None:
        """Raises: InvalidRequest for what only others can run."""
        ...

    def prefill(self, running: Sequence[Running]) -> Iterator[Outcome]:
        """Go on with the prompts that are not whole yet, the oldest first."""
        ...

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        """One step for all that are ready, counted."""
        ...

    def free(self, slot: int) -> None:
        """Forget a slot's content."""
        ...


class SlotSteps:
    """One chunk of one prompt, then one decoding step for every request whose prompt is whole."""

    def __init__(self, runner: Runner, prefill_chunk: int = 512) -> None:
        """prefill_chunk: positions."""
        self.runner, self.prefill_chunk = runner, prefill_chunk
        self.num_slots, self.max_length, self.vocab_size = runner.num_slots, runner.max_length, runner.vocab_size

    def check(self, request: GenerationRequest) -> None:
        """A runner takes every request."""

    def free(self, slot: int) -> None:
        self.runner.free(slot)

    def prefill(self, running: Sequence[Running]) -> Iterator[Outcome]:
        """One chunk of the oldest prompt that is not whole yet."""
        one = next((one for one in running if not one.is_whole), None)
        if one is None:
            return
        request = one.request
        sequence, begin = divmod(one.prefilled, len(request.input_ids))
        ids = one.prompts[sequence][begin : begin + self.prefill_chunk]
        visible = np.ones(len(ids), bool) if request.pad_id is None else ids != request.pad_id
        try:
            logits = self.runner.prefill(one.slots[sequence], ids, request.media, visible)
        except Exception as error:
            yield Failure(one, error)
            return
        one.prefilled += len(ids)
        if begin + len(ids) == len(request.input_ids):
            one.scores.append(logits)
        if one.is_whole:
            yield Advance(one, one.combine(one.scores))

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        ready = [one for one in running if one.sampler.generated]
        if not ready:
            return
        counters.count_step(len(ready))
        try:
            scores = self.runner.decode(
                [slot for one in ready for slot in one.slots],
                [one.sampler.generated[-1] for one in ready for _ in one.slots],
            )
        except Exception as error:
            if len(ready) == 1:
                yield Failure(ready[0], error)
                return
            logger.exception("a step for %d requests failed; each is tried alone", len(ready))
            yield from self._decode_alone(ready)
            return
        best = scores.best([one.sampler for one in ready for _ in one.slots])
        row = 0
        for one in ready:
            rows = range(row, row := row + len(one.slots))
            token = best[rows[0]] if one.sampler.greedy and len(rows) == 1 else None
            # Scores on a GPU stay there for those that take the best token.
            wanted = token is None or one.request.return_logits
            yield Advance(one, one.combine([scores[each] for each in rows]) if wanted else None, token)

    def _decode_alone(self, ready: list[Running]) -> Iterator[Outcome]:
        """One request's fault must not end its neighbours."""
        for one in ready:
            try:
                scores = self.runner.decode(one.slots, [one.sampler.generated[-1] for _ in one.slots])
            except Exception as error:
                yield Failure(one, error)
            else:
                yield Advance(one, one.combine([scores[row] for row in range(len(one.slots))]))
