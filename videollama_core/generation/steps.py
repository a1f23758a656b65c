"""What runs a step: the scheduler knows the interface `Steps`; `SlotSteps` is prefill and decoding on a runner's slots."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from videollama_core.generation.chunks import LEAST, ChunkSizes
from videollama_core.generation.prefixes import KeptPrefixes, positions_of
from videollama_core.generation.request import GenerationRequest, Running
from videollama_core.generation.runner import Runner

logger = logging.getLogger(__name__)


@dataclass
class Counters:
    """What has happened since the start."""

    iterations: int = 0
    decode_steps: int = 0  # batched: one for all running requests
    generated_tokens: int = 0
    cancelled: int = 0
    prompt_positions: int = 0  # computed
    reused_positions: int = 0  # of prompts, taken from one before
    prefix_hits: int = 0  # prompts that began like one before
    prefix_bytes: int = 0  # of memory, now, for what is kept of prompts
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

    def prefill(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        """Go on with the prompts that are not whole yet, counted."""
        ...

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        """One step for all that are ready, counted."""
        ...

    def free(self, slot: int) -> None:
        """Forget a slot's content."""
        ...


class SlotSteps:
    """One chunk of one prompt, then one decoding step for every request whose prompt is whole.

    While others decode a chunk is small (chunks.py), and every other one belongs to a prompt of which little is left, if
    there is one: a short question does not wait for a long one's video. Else the oldest goes on.

    A prompt that begins like one before is computed from where they differ. It is looked up when its turn comes: of questions
    about the same new video that come together, the first computes the video and the others find it.
    """

    def __init__(
        self, runner: Runner, prefill_chunk: int = 512, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """prefill_chunk: positions, while nobody decodes."""
        self.runner, self._clock, self._chunks = runner, clock, ChunkSizes(prefill_chunk)
        self._oldest_first = False
        self.num_slots, self.max_length, self.vocab_size = runner.num_slots, runner.max_length, runner.vocab_size
        self.prefixes = KeptPrefixes(runner.spare_bytes)

    def check(self, request: GenerationRequest) -> None:
        """A runner takes every request."""

    def free(self, slot: int) -> None:
        self.runner.free(slot)

    def prefill(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        """One chunk of one prompt that is not whole yet."""
        waiting = [one for one in running if not one.is_whole]
        if not waiting:
            return
        one = waiting[0]
        try:
            one = self._next(waiting)
            request, (sequence, begin) = one.request, one.place
            slot, prompt = one.slots[sequence], one.prompts[sequence]
            if begin == 0:
                begin = self._reuse(one, slot, prompt, counters)
            ids = prompt[begin : begin + self._chunks.next(any(other.sampler.generated for other in running))]
            visible = np.ones(len(ids), bool) if request.pad_id is None else ids != request.pad_id
            began = self._clock()
            logits = self.runner.prefill(slot, ids, request.media, visible)
            self._chunks.took_chunk(len(ids), self._clock() - began)
            counters.prompt_positions += len(ids)
            one.prefilled += len(ids)
            if begin + len(ids) == len(prompt):
                one.scores.append(logits)
                self.prefixes.keep(one.positions, lambda: self.runner.keep(slot))
                one.positions = one.positions[:0]
                counters.prefix_bytes = self.prefixes.bytes
        except Exception as error:
            yield Failure(one, error)
            return
        if one.is_whole:
            yield Advance(one, one.combine(one.scores))

    def _next(self, waiting: Sequence[Running]) -> Running:
        """The oldest, or, every other time, the first of which little is left."""
        self._oldest_first = not self._oldest_first
        if self._oldest_first or len(waiting) == 1:
            return waiting[0]
        return next((one for one in waiting if self._left(one) <= LEAST), waiting[0])

    def _left(self, one: Running) -> int:
        """Positions of a request's prompt that must still be computed."""
        sequence, begin = one.place
        prompt = one.prompts[sequence]
        if begin == 0 and len(prompt) > LEAST:
            begin = self.prefixes.find(self._positions(one, prompt))[1]
        return len(prompt) - begin

    def _positions(self, one: Running, prompt: np.ndarray) -> np.ndarray:
        if not len(one.positions):
            request = one.request
            one.positions = positions_of(prompt, self.vocab_size, request.media_hashes, request.media, request.pad_id)
        return one.positions

    def _reuse(self, one: Running, slot: int, prompt: np.ndarray, counters: Counters) -> int:
        """Fill a slot with what is kept of the prompt's beginning. Returns: its positions."""
        kept, length = self.prefixes.find(self._positions(one, prompt))
        if length:
            self.runner.begin(slot, kept, length)
            one.prefilled += length
            if one.slots[0] == slot:  # with a contrast the other is a prompt that its caller did not send
                one.cached_tokens = length
            counters.prefix_hits += 1
            counters.reused_positions += length
        return length

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        ready = [one for one in running if one.sampler.generated]
        if not ready:
            return
        counters.count_step(len(ready))
        began = self._clock()
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
        self._chunks.took_step(self._clock() - began)
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
