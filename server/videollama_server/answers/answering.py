"""The second half of a question's life: ids -> pieces of text -> the summary. Knows no Triton.

Everything here is called in one thread, the loop's.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from videollama_core.prompt import Prompt
from videollama_core.protocol.errors import Cancelled, StageRestarting
from videollama_core.protocol.messages import FrameSeen, ResolvedSampling, Usage
from videollama_core.telemetry.traces import Span
from videollama_core.text import AnswerText
from videollama_server.answers.known_media import NOT_RUN, Interval

AGAIN_SECONDS = 0.05  # between two attempts to reach a language model that is being started again
RESTART_SECONDS = 15.0  # how long it is waited for


@dataclass(frozen=True)
class Summary:
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
    """Where the answer to one question goes; the piece with the summary, or an error, ends it."""

    def send(self, piece: Piece) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def is_cancelled(self) -> bool: ...


class Listener(Protocol):
    """Hears what the language model says, in the loop's thread."""

    def on_ids(self, ids: list[int]) -> None:
        """New ids, at least one: whatever was there."""
        ...

    def on_cached_tokens(self, count: int) -> None:
        """Positions of the prompt that were in the KV cache. Before the first ids, from an engine that says it."""
        ...

    def on_end(self, error: Exception | None) -> None:
        """Nothing more comes."""
        ...


class Generation(Protocol):
    """A request of the language model."""

    def start(self) -> None:
        """From any thread."""
        ...

    def stop(self) -> None:
        """End it; to be called in the loop's thread. One that has ended stays as it is."""
        ...


class LanguageModel(Protocol):
    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        seen: Any,
        sampling: ResolvedSampling,
        listener: Listener,
        traceparent: str | None = None,
    ) -> Generation:
        """From any thread. Args: seen: the media's Perception, or None."""
        ...

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it in the loop's thread."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A question that the language model can be asked."""

    prompt: Prompt
    seen: Any
    sampling: ResolvedSampling
    frames: tuple[FrameSeen, ...]
    clock: "Clock"


class Answering:
    """One answer on its way; a listener of its own generation."""

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
        self._over = False
        self._deadline = time.monotonic() + RESTART_SECONDS
        self._generation = self._ask()

    def start(self) -> None:
        """The one call that may come from any thread, and the last of the thread that prepared the question."""
        self._generation.start()

    def _ask(self) -> Generation:
        asked, name = self._prepared, str(secrets.randbits(63))
        return self._language_model.generate(
            name, asked.prompt, asked.seen, asked.sampling, self, asked.clock.span.traceparent
        )

    def _begin_again(self) -> None:
        """A generation is begun again while its stage is being started again and no token has come."""
        if self._over:
            return
        try:
            self._generation = self._ask()
            self._generation.start()
        except Exception as error:
            self._fail(error)

    def on_ids(self, ids: list[int]) -> None:
        if self._over:
            return
        if not self._ids:
            self._prepared.clock.lap("prefill")
            self._prepared = replace(self._prepared, seen=None)  # it is not begun again: the table may go
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
        if self._over:
            return
        if error is None:
            try:
                self._finish(Piece(self._text.finish()))
            except Exception as failure:
                self._fail(failure)
        elif isinstance(error, StageRestarting) and not self._ids and time.monotonic() < self._deadline:
            self._language_model.later(AGAIN_SECONDS, self._begin_again)
        else:
            self._fail(error)

    def cancel(self) -> None:
        """The caller has left."""
        if not self._over:
            self._fail(Cancelled("the client left"))

    def _fail(self, error: Exception) -> None:
        self._over = True
        self._generation.stop()
        self._replier.fail(error)

    def _finish(self, last: Piece) -> None:
        asked, ids = self._prepared, self._ids
        asked.clock.lap("decode")
        ended = self._text.stopped or len(ids) < asked.sampling.max_new_tokens or ids[-1] in self._end_ids
        usage = Usage(asked.prompt.text_tokens, asked.prompt.media_tokens, len(ids), self._cached_tokens)
        summary = Summary("stop" if ended else "length", usage, asked.clock.report(), asked.frames)
        self._over = True
        self._replier.send(replace(last, summary=summary))


class Clock:
    """Seconds per stage of one request, and the parts of its span."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._last = self._start = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str, traced: bool = False) -> None:
        now = time.monotonic()
        self._seconds[stage] = now - self._last
        self._last = now
        if traced:
            ended = time.time()
            self.span.child(stage, ended - self._seconds[stage], ended)

    def add_perception(self, spans: Mapping[str, Interval]) -> None:
        self.lap("perception")
        for stage, (began, ended) in spans.items():
            self._seconds[stage] = ended - began
            if (began, ended) != NOT_RUN:
                self.span.child(stage, began, ended)

    def report(self) -> dict[str, float]:
        return {
            **{stage: round(value, 6) for stage, value in self._seconds.items()},
            "total": round(time.monotonic() - self._start, 6),
        }
