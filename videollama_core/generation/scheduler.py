"""Iteration-level batching: requests join and leave between decoding steps.

One iteration drops cancelled requests, admits waiting ones, continues prefilling, then takes one decoding step for all
running requests together. steps.py runs the steps; with `SlotSteps` one iteration prefills one chunk of one prompt, so that
a long prompt never stalls the others for longer than a chunk.

A request with a contrast (contrast.py) holds two slots: one sequence has the media, the other the noised media, and both
continue with the same tokens. Both slots are taken at once and in the order of the queue, so that no request waits while
holding one.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from videollama_core.generation.request import GenerationRequest, Running, Step
from videollama_core.generation.steps import Counters, Failure, Outcome, Steps
from videollama_core.protocol.errors import (
    Cancelled,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    StageFailed,
    VideoLlamaError,
)
from videollama_core.sampling import Sampler

logger = logging.getLogger(__name__)


@dataclass
class Scheduler:
    """Runs generation requests on a fixed number of slots.

    Args:
        max_waiting: requests in the queue; further ones are rejected.
        after_step: called in the scheduler's thread when `on_step` has received every token of a step, and after errors.
    """

    steps: Steps
    max_waiting: int = 128
    counters: Counters = field(default_factory=Counters)
    after_step: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._waiting: deque[GenerationRequest] = deque()
        self._running: dict[int, Running] = {}
        self._stops: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    # --- called from any thread ---

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises: Overloaded, PromptTooLong, InvalidRequest."""
        self._check(request)
        with self._changed:
            if self._closed:
                raise StageFailed("the language model is shutting down")
            if len(self._waiting) >= self.max_waiting:
                raise Overloaded(f"{len(self._waiting)} requests are waiting for the language model; try again later")
            active = [*self._waiting, *(running.request for running in self._running.values())]
            if any(request.request_id == other.request_id for other in active):
                raise InvalidRequest(f"request id {request.request_id} is already running; use another")
            self._waiting.append(request)
            self._changed.notify()

    def stop(self, request_id: str) -> None:
        """Cancel a request; an unknown id is ignored, because the request may just have ended."""
        with self._changed:
            active = [*self._waiting, *(running.request for running in self._running.values())]
            if any(request_id == request.request_id for request in active):
                self._stops.add(request_id)
                self._changed.notify()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        """Run iterations in a thread until `close`."""
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; every unfinished request gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        for request in (*self._waiting, *(running.request for running in self._running.values())):
            self._report(request, StageFailed("the language model is shutting down"))
        self.after_step()

    def _check(self, request: GenerationRequest) -> None:
        length, rows = len(request.input_ids), 0 if request.media is None else len(request.media)
        if request.sampling.contrasts:
            if rows == 0 or rows % 2:
                raise InvalidRequest(
                    f"found {rows} media rows; vcd_alpha needs those of the media and as many of noised pixels"
                )
            if self.steps.num_slots < 2:
                raise InvalidRequest(
                    "vcd_alpha needs two slots, and this server has one: convert with --slots 2 or more"
                )
            rows //= 2
        if length == 0:
            raise InvalidRequest("input_ids is empty; send at least one token")
        if request.input_ids.min() < 0 or request.input_ids.max() >= self.steps.vocab_size + rows:
            raise InvalidRequest(
                f"input_ids range from {request.input_ids.min()} to {request.input_ids.max()}; expected 0 to "
                f"{self.steps.vocab_size - 1}, followed by {rows} media rows"
            )
        if length >= self.steps.max_length:
            raise PromptTooLong(
                f"the prompt has {length} tokens; the context holds {self.steps.max_length}, the answer included"
            )
        self.steps.check(request)

    # --- the scheduler's own thread ---

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._running)
                if self._closed:
                    return
            try:
                self.iterate()
            except Exception as error:  # not attributable to one request: all of them fail, and new ones are accepted
                self._fail_all(error)
                self.after_step()

    def iterate(self) -> None:
        """Run one iteration."""
        self.counters.iterations += 1
        self._drop_cancelled()
        self._admit()
        for step in (self.steps.prefill, self.steps.decode):
            for outcome in step(list(self._running.values()), self.counters):
                self._act_on(outcome)
            self.after_step()

    def _drop_cancelled(self) -> None:
        with self._changed:
            stops, self._stops = self._stops, set()
            polled = self._polled_while_waiting()
            waiting = [
                request
                for place, request in enumerate(self._waiting)
                if request.request_id in stops or (place in polled and self._has_left(request))
            ]
            for request in waiting:
                self._waiting.remove(request)
        running = [
            running
            for running in self._running.values()
            if running.request.request_id in stops or self._has_left(running.request)
        ]
        for cancelled in running:
            self._release(cancelled)
        for request in [*waiting, *(cancelled.request for cancelled in running)]:
            self.counters.cancelled += 1
            self._report(request, Cancelled("the request was stopped"))

    def _polled_while_waiting(self) -> set[int]:
        """Places in the queue to poll for cancellation: those that may be admitted now and, since polling costs time, only
        one of the rest in turn."""
        return {*range(len(self._free_slots())), self.counters.iterations % max(len(self._waiting), 1)}

    def _admit(self) -> None:
        with self._changed:
            free = self._free_slots()
            while self._waiting and len(free) >= self._waiting[0].num_slots:
                request = self._waiting.popleft()
                slots = free[: request.num_slots]
                try:
                    request.on_admitted()
                    running = Running(request, Sampler(request.sampling), slots, request.prompts(self.steps.vocab_size))
                except Exception as error:
                    self._report(request, self._failure(request, error))
                    continue
                self._running[slots[0]] = running
                free = free[request.num_slots :]

    def _free_slots(self) -> list[int]:
        taken = {slot for running in self._running.values() for slot in running.slots}
        return [slot for slot in range(self.steps.num_slots) if slot not in taken]

    def _act_on(self, outcome: Outcome) -> None:
        if self._running.get(outcome.running.slot) is not outcome.running:
            return  # already ended by an earlier token of the same step
        if isinstance(outcome, Failure):
            self._fail(outcome.running, outcome.error)
        else:
            self._advance(outcome.running, outcome.scores, outcome.token)

    def _advance(self, running: Running, logits: np.ndarray | None, chosen: int | None) -> None:
        """Append one token: `chosen` if the engine chose it already, else sampled from the scores."""
        request, generated = running.request, running.sampler.generated
        try:
            if chosen is not None:
                token = running.sampler.take(chosen)
            else:
                assert logits is not None
                token = running.sampler.choose(logits)
        except ValueError as error:  # NaN among the scores
            self._fail(running, error)
            return
        self.counters.generated_tokens += 1
        ended = any(generated[-len(word) :] == list(word) for word in request.end_words)
        full = len(request.input_ids) + len(generated) >= self.steps.max_length
        last = ended or full or len(generated) >= request.sampling.max_new_tokens
        if last:
            self._release(running)
        try:
            returned = logits if request.return_logits else None
            request.on_step(Step(token, returned, last, running.cached_tokens if len(generated) == 1 else 0))
        except Exception:  # the receiver is gone
            logger.exception("request %s: its callback failed", request.request_id)
            if not last:
                self._release(running)

    def _fail(self, running: Running, error: Exception) -> None:
        self._release(running)
        self._report(running.request, self._failure(running.request, error))

    def _fail_all(self, error: Exception) -> None:
        for running in list(self._running.values()):
            self._fail(running, error)
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for request in waiting:
            self._report(request, self._failure(request, error))

    @staticmethod
    def _failure(request: GenerationRequest, error: Exception) -> StageFailed:
        logger.error("request %s failed", request.request_id, exc_info=error)
        return StageFailed(f"the language model failed on this request: {error}")

    def _release(self, running: Running) -> None:
        with self._changed:
            del self._running[running.slot]
        for slot in running.slots:
            self.steps.free(slot)

    @staticmethod
    def _has_left(request: GenerationRequest) -> bool:
        try:
            return request.is_cancelled()
        except Exception:  # the receiver is gone
            logger.exception("request %s: its callback failed", request.request_id)
            return True

    @staticmethod
    def _report(request: GenerationRequest, error: VideoLlamaError) -> None:
        try:
            request.on_error(error)
        except Exception:  # the receiver is gone; other requests continue
            logger.exception("request %s: its callback failed", request.request_id)
