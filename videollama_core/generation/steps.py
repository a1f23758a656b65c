"""Running the scheduler's steps: the interface `Steps`, and `SlotSteps`, which prefills and decodes on a runner's slots."""

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
    """Counts since the start."""

    iterations: int = 0
    decode_steps: int = 0  # batched: one for all running requests
    generated_tokens: int = 0
    cancelled: int = 0
    prompt_positions: int = 0  # computed
    reused_positions: int = 0  # of prompts, reused from earlier ones
    prefix_hits: int = 0  # prompts that shared a prefix with an earlier one
    prefix_bytes: int = 0  # current memory of the prefix cache
    most_in_one_step: int = 0

    def count_step(self, size: int) -> None:
        """Count a decoding step for `size` requests."""
        self.decode_steps += 1
        self.most_in_one_step = max(self.most_in_one_step, size)


@dataclass(frozen=True)
class Advance:
    """A request's next token, the scores to choose it from, or both."""

    running: Running
    scores: np.ndarray | None = None  # float32 [vocab]
    token: int | None = None  # if the engine chose it already


@dataclass(frozen=True)
class Failure:
    """A request that cannot continue."""

    running: Running
    error: Exception


Outcome = Advance | Failure


class Steps(Protocol):
    """Prefills and decodes the requests that hold slots.

    The scheduler acts on each outcome before it reads the next one, so a request may end in between.
    """

    @property
    def num_slots(self) -> int: ...

    @property
    def max_length(self) -> int:
        """Positions per slot."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def check(self, request: GenerationRequest) -> None:
        """Raises: InvalidRequest for a request that these steps cannot run."""
        ...

    def prefill(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        """Continue with incomplete prompts, and count the work."""
        ...

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        """One step for all requests that are ready, counted."""
        ...

    def free(self, slot: int) -> None:
        """Forget a slot's content."""
        ...


class SlotSteps:
    """One chunk of one prompt, then one decoding step for every request whose prompt is complete.

    While others decode, chunks are small (chunks.py), and every second one goes to a prompt with little left, if there is
    one, so that a short question does not wait for another one's video. Otherwise the oldest prompt continues.

    A prompt that shares a prefix with an earlier one is computed from where they differ. The lookup happens when its turn
    comes: of concurrent questions about the same new video, the first computes the video and the others reuse it.
    """

    def __init__(
        self, runner: Runner, prefill_chunk: int = 512, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """prefill_chunk: positions, while no request decodes."""
        self.runner, self._clock, self._chunks = runner, clock, ChunkSizes(prefill_chunk)
        self._oldest_first = False
        self.num_slots, self.max_length, self.vocab_size = runner.num_slots, runner.max_length, runner.vocab_size
        self.prefixes = KeptPrefixes(runner.spare_bytes)

    def check(self, request: GenerationRequest) -> None:
        """A runner accepts every request."""

    def free(self, slot: int) -> None:
        self.runner.free(slot)

    def prefill(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        """One chunk of one incomplete prompt."""
        waiting = [entry for entry in running if not entry.is_whole]
        if not waiting:
            return
        current = waiting[0]
        try:
            current = self._next(waiting)
            request, (sequence, begin) = current.request, current.place
            slot, prompt = current.slots[sequence], current.prompts[sequence]
            if begin == 0:
                begin = self._reuse(current, slot, prompt, counters)
            ids = prompt[begin : begin + self._chunks.next(any(other.sampler.generated for other in running))]
            visible = np.ones(len(ids), bool) if request.pad_id is None else ids != request.pad_id
            began = self._clock()
            logits = self.runner.prefill(slot, ids, request.media, visible)
            self._chunks.took_chunk(len(ids), self._clock() - began)
            counters.prompt_positions += len(ids)
            current.prefilled += len(ids)
            if begin + len(ids) == len(prompt):
                current.scores.append(logits)
                self.prefixes.keep(current.positions, lambda: self.runner.keep(slot))
                current.positions = current.positions[:0]
                counters.prefix_bytes = self.prefixes.bytes
        except Exception as error:
            yield Failure(current, error)
            return
        if current.is_whole:
            yield Advance(current, current.combine(current.scores))

    def _next(self, waiting: Sequence[Running]) -> Running:
        """The oldest request or, every second time, the first one with little of its prompt left."""
        self._oldest_first = not self._oldest_first
        if self._oldest_first or len(waiting) == 1:
            return waiting[0]
        return next((entry for entry in waiting if self._left(entry) <= LEAST), waiting[0])

    def _left(self, entry: Running) -> int:
        """Positions of a request's prompt that must still be computed."""
        sequence, begin = entry.place
        prompt = entry.prompts[sequence]
        if begin == 0 and len(prompt) > LEAST:
            begin = self.prefixes.find(self._positions(entry, prompt))[1]
        return len(prompt) - begin

    def _positions(self, entry: Running, prompt: np.ndarray) -> np.ndarray:
        if not len(entry.positions):
            request = entry.request
            entry.positions = positions_of(prompt, self.vocab_size, request.media_hashes, request.media, request.pad_id)
        return entry.positions

    def _reuse(self, entry: Running, slot: int, prompt: np.ndarray, counters: Counters) -> int:
        """Fill a slot with the cached prefix of a prompt. Returns: the length of the prefix."""
        kept, length = self.prefixes.find(self._positions(entry, prompt))
        if length:
            self.runner.begin(slot, kept, length)
            entry.prefilled += length
            if entry.slots[0] == slot:  # with a contrast, the caller did not send the second prompt
                entry.cached_tokens = length
            counters.prefix_hits += 1
            counters.reused_positions += length
        return length

    def decode(self, running: Sequence[Running], counters: Counters) -> Iterator[Outcome]:
        ready = [entry for entry in running if entry.sampler.generated]
        if not ready:
            return
        counters.count_step(len(ready))
        began = self._clock()
        try:
            scores = self.runner.decode(
                [slot for entry in ready for slot in entry.slots],
                [entry.sampler.generated[-1] for entry in ready for _ in entry.slots],
            )
        except Exception as error:
            if len(ready) == 1:
                yield Failure(ready[0], error)
                return
            logger.exception("a step for %d requests failed; each is retried alone", len(ready))
            yield from self._decode_alone(ready)
            return
        best = scores.best([entry.sampler for entry in ready for _ in entry.slots])
        self._chunks.took_step(self._clock() - began)
        row = 0
        for entry in ready:
            rows = range(row, row := row + len(entry.slots))
            token = best[rows[0]] if entry.sampler.greedy and len(rows) == 1 else None
            # Scores on a GPU stay there for requests that take the best token.
            needed = token is None or entry.request.return_logits
            yield Advance(entry, entry.combine([scores[index] for index in rows]) if needed else None, token)

    def _decode_alone(self, ready: list[Running]) -> Iterator[Outcome]:
        """Retry each request by itself: one request's failure must not end the others."""
        for entry in ready:
            try:
                scores = self.runner.decode(entry.slots, [entry.sampler.generated[-1] for _ in entry.slots])
            except Exception as error:
                yield Failure(entry, error)
            else:
                yield Advance(entry, entry.combine([scores[row] for row in range(len(entry.slots))]))
