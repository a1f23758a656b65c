"""The second half of answering a question: token ids -> pieces of text -> the summary. Independent of Triton.

Everything here runs in one thread, the loop's, unless it says otherwise.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from videollama_core.prompt import Prompt
from videollama_core.protocol.errors import Cancelled, StageDied, StageFailed, StageRestarting
from videollama_core.protocol.messages import FrameSeen, ResolvedSampling, Usage
from videollama_core.telemetry.traces import Span
from videollama_core.text import AnswerText
from videollama_server.answers.known_media import NOT_RUN, RESTART_SECONDS, RETRY_SECONDS, Interval

logger = logging.getLogger(__name__)
DEATHS_ALLOWED = 2  # of a language model that has not answered yet: a request sent just after its death is lost with it


@dataclass(frozen=True)
class Summary:
    """The end of an answer: why it ended, what it used, and how long it took."""

    finish_reason: str  # "stop" (end token or stop string) or "length"
    usage: Usage
    seconds: dict[str, float]  # by stage, and "total"
    frames: tuple[FrameSeen, ...] = ()  # of a video, in order


@dataclass(frozen=True)
class Piece:
    """A part of an answer."""

    text: str
    output_ids: list[int] = field(default_factory=list)
    summary: Summary | None = None  # with the last piece


class Replier(Protocol):
    """The destination of one answer; the piece with the summary, or an error, ends it."""

    def send(self, piece: Piece) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def is_cancelled(self) -> bool: ...


class Listener(Protocol):
    """Receives the language model's responses, in the loop's thread."""

    def on_ids(self, ids: list[int]) -> None:
        """All new ids that have arrived, at least one."""
        ...

    def on_cached_tokens(self, count: int) -> None:
        """Number of prompt positions found in the KV cache; before the first ids, from engines that report it."""
        ...

    def on_end(self, error: Exception | None) -> None:
        """The generation has ended; `error` is None if it is complete."""
        ...


class Generation(Protocol):
    """A request to the language model."""

    def start(self) -> None:
        """Send the request. Callable from any thread."""
        ...

    def stop(self) -> None:
        """End the generation; does nothing if it has ended. Callable only in the loop's thread."""
        ...


class LanguageModel(Protocol):
    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        perception: Any,
        sampling: ResolvedSampling,
        listener: Listener,
        traceparent: str | None = None,
    ) -> Generation:
        """Create a generation. Callable from any thread.

        Args:
            perception: the Perception of the media, or None.
        """
        ...

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Run `call` in the loop's thread after a delay."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A question that is ready for the language model."""

    prompt: Prompt
    perception: Any  # the Perception of the media; None without media
    sampling: ResolvedSampling
    frames: tuple[FrameSeen, ...]
    clock: "Clock"


class Answering:
    """An answer in progress; the listener of its own generation."""

    def __init__(
        self,
        prepared: Prepared,
        text: AnswerText,
        end_ids: tuple[int, ...],
        language_model: LanguageModel,
        replier: Replier,
    ) -> None:
        self._prepared, self._text, self._end_ids = prepared, text, end_ids
        self._language_model, self._replier = language_model, replier
        self._ids: list[int] = []
        self._cached_tokens = 0
        self._ended = False
        self._deadline = time.monotonic() + RESTART_SECONDS
        self._deaths = 0  # of the stage while it had this question
        self._generation = self._generate()

    def start(self) -> None:
        """Start the generation. Callable from any thread; the last call of the thread that prepared the question."""
        self._generation.start()

    def _generate(self) -> Generation:
        prepared, request_id = self._prepared, str(secrets.randbits(63))
        return self._language_model.generate(
            request_id, prepared.prompt, prepared.perception, prepared.sampling, self, prepared.clock.span.traceparent
        )

    def _retry(self) -> None:
        """Request the generation again; done while the stage restarts and no token has arrived."""
        if self._ended:
            return
        try:
            self._generation = self._generate()
            self._generation.start()
        except Exception as error:
            self._fail(error)

    def on_ids(self, ids: list[int]) -> None:
        if self._ended:
            return
        if not self._ids:
            self._prepared.clock.lap("prefill")
            self._prepared = replace(self._prepared, perception=None)  # no retry from here on: frees the table
        self._ids += ids
        try:
            piece = Piece(self._text.push(ids), ids)
            if self._text.stopped:
                self._generation.stop()
                self._finish(piece)
            else:
                self._replier.send(piece)
        except Exception as error:
            self._fail(error)

    def on_cached_tokens(self, count: int) -> None:
        self._cached_tokens = count

    def on_end(self, error: Exception | None) -> None:
        if self._ended:
            return
        if isinstance(error, StageDied):
            self._deaths += 1
            if self._ids or self._deaths > DEATHS_ALLOWED:  # the question itself may be what ends the stage
                error = StageFailed(str(error))
        if error is None:
            try:
                self._finish(Piece(self._text.finish()))
            except Exception as failure:
                self._fail(failure)
        elif isinstance(error, StageRestarting) and not self._ids and time.monotonic() < self._deadline:
            self._language_model.later(RETRY_SECONDS, self._retry)
        else:
            self._fail(error)

    def cancel(self) -> None:
        """End the answer, because the caller has disconnected."""
        if not self._ended:
            self._fail(Cancelled("the client disconnected"))

    def _fail(self, error: Exception) -> None:
        self._ended = True
        self._generation.stop()
        try:
            self._replier.fail(error)
        except Exception:  # for example no shared memory; raised to the connection, it would lose the tokens of others
            logger.exception("a question's caller cannot be told of an error")

    def _finish(self, last: Piece) -> None:
        prepared, ids = self._prepared, self._ids
        prepared.clock.lap("decode")
        stopped = self._text.stopped or len(ids) < prepared.sampling.max_new_tokens or ids[-1] in self._end_ids
        usage = Usage(prepared.prompt.text_tokens, prepared.prompt.media_tokens, len(ids), self._cached_tokens)
        summary = Summary("stop" if stopped else "length", usage, prepared.clock.report(), prepared.frames)
        self._ended = True
        self._replier.send(replace(last, summary=summary))


class Clock:
    """Measures the seconds per stage of one request, and adds child spans to its span."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._last = self._start = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str, traced: bool = False) -> None:
        """Record the time since the last call as that of `stage`; `traced` also adds a child span."""
        now = time.monotonic()
        self._seconds[stage] = now - self._last
        self._last = now
        if traced:
            ended = time.time()
            self.span.child(stage, ended - self._seconds[stage], ended)

    def add_perception(self, spans: Mapping[str, Interval]) -> None:
        """Record the perception, and within it the stages that ran."""
        self.lap("perception")
        for stage, (began, ended) in spans.items():
            self._seconds[stage] = ended - began
            if (began, ended) != NOT_RUN:
                self.span.child(stage, began, ended)

    def report(self) -> dict[str, float]:
        """Return the seconds by stage, and "total"."""
        return {
            **{stage: round(value, 6) for stage, value in self._seconds.items()},
            "total": round(time.monotonic() - self._start, 6),
        }
