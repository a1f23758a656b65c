"""The life of one question behind the public entry: media -> tokens -> text, in pieces.

Knows no Triton: the other stages are the interface `Stages`.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from videollama_core.contrast import NO_CONTRAST, NO_PIXELS, Noise
from videollama_core.engines.bundle import Bundle
from videollama_core.media.video import Segment
from videollama_core.prompt import MODALITIES, Prompt, check_length, render_prompt, tokenize_prompt
from videollama_core.protocol.contract import MAX_MEDIA_BYTES, MEDIA_KINDS
from videollama_core.protocol.errors import Cancelled, InvalidRequest, StageDied, StageRestarting
from videollama_core.protocol.messages import Conversation, ResolvedSampling, SamplingOptions, Usage
from videollama_core.text import AnswerText

POLL_SECONDS = 0.05  # how often a request that waits looks whether its client has left; with every token, it looks too
DEATHS_ALLOWED = 3  # of the stages before it, until a request is given up
RESTART_SECONDS = 15.0  # how long a request waits for a stage that is being started again


@dataclass(frozen=True)
class Question:
    conversation: Conversation
    options: SamplingOptions
    kind: str | None = None  # of the media; None for a text-only question
    files: tuple[bytes, ...] = ()
    segment: Segment = field(default_factory=Segment)

    def __post_init__(self) -> None:
        if self.kind is None:
            if self.files:
                raise InvalidRequest(f"media came without media_kind; it takes one of {', '.join(MEDIA_KINDS)}")
            if self.segment != Segment():
                raise InvalidRequest("start and end came without a video")
            return
        if self.kind not in MEDIA_KINDS:
            raise InvalidRequest(f"media_kind is {self.kind!r}; it takes one of {', '.join(MEDIA_KINDS)}")
        if not self.files:
            raise InvalidRequest(f"media_kind is {self.kind} and media is empty; send at least one file")
        size = sum(map(len, self.files))
        if size > MAX_MEDIA_BYTES:
            raise InvalidRequest(f"media has {size} bytes; the limit of a request is {MAX_MEDIA_BYTES}")
        self.segment.refuse_reversed()


@dataclass(frozen=True)
class Perception:
    table: Any  # [1, N, D], with noise [1, 2N, D]: an array, or Triton's own tensor where they lie on the GPU
    rows: int  # of the table
    media_hash: int  # of what was encoded, never 0
    spans: dict[str, tuple[float, float]]  # stage -> Unix seconds when its work began and ended


@dataclass(frozen=True)
class Summary:
    finish_reason: str  # "stop" (end token or stop string) or "length"
    usage: Usage
    seconds: dict[str, float]  # by stage, and "total"


@dataclass(frozen=True)
class Piece:
    """A part of an answer."""

    text: str
    output_ids: list[int] = field(default_factory=list)
    summary: Summary | None = None  # with the last piece


class Generation(Protocol):
    """A running request of the language model."""

    def next(self, timeout: float) -> list[int] | None:
        """New ids; [] when nothing came within `timeout` seconds; None when it has ended. Raises what the stage reports."""
        ...

    def stop(self) -> None: ...


class Stages(Protocol):
    def perceive(self, kind: str, files: Sequence[bytes], segment: Segment, noise: Noise | None) -> Perception: ...

    def generate(
        self, request_id: str, prompt: Prompt, seen: Perception | None, sampling: ResolvedSampling
    ) -> Generation: ...


def build_prompt(
    bundle: Bundle, tokenizer: Any, conversation: Conversation, kind: str | None, num_media_tokens: int
) -> Prompt:
    """Prompt ids of a conversation about media of a kind. Raises: InvalidRequest, PromptTooLong."""
    language = bundle.config.language
    modality = "text" if kind is None else MODALITIES[kind]
    rendered = render_prompt(tokenizer, language.family, conversation, modality)
    prompt = tokenize_prompt(tokenizer, rendered, modality, num_media_tokens, language.vocab_size)
    check_length(prompt, bundle.max_seq_len)
    return prompt


class Entry:
    """Answers questions about one bundle."""

    def __init__(self, bundle: Bundle, stages: Stages) -> None:
        self._bundle, self._stages = bundle, stages
        self._tokenizer = bundle.tokenizer()
        self._defaults = bundle.generation_defaults(self._tokenizer)

    def answer(self, question: Question, emit: Callable[[Piece], None], is_cancelled: Callable[[], bool]) -> None:
        """Emit the answer piece by piece; the last one carries its summary.

        Raises: Cancelled when the client has left; whatever a stage reports.
        """
        clock = _Clock()
        prompt, seen, sampling = self._prepare(question, clock, is_cancelled)
        generation = _RestartableGeneration(
            lambda: self._stages.generate(str(secrets.randbits(63)), prompt, seen, sampling)
        )
        pieces = AnswerText(self._tokenizer, question.options.stop)
        ids: list[int] = []
        try:
            for new in _tokens(generation, is_cancelled):
                if not ids:
                    clock.lap("prefill")
                ids.extend(new)
                piece = Piece(pieces.push(new), new)
                if pieces.stopped:
                    generation.stop()
                    last = piece
                    break
                emit(piece)
            else:
                last = Piece(pieces.finish())
        except BaseException:
            generation.stop()
            raise
        clock.lap("decode")
        ended = pieces.stopped or len(ids) < sampling.max_new_tokens or ids[-1] in self._defaults.end_ids
        usage = Usage(prompt.text_tokens, prompt.media_tokens, len(ids))
        emit(replace(last, summary=Summary("stop" if ended else "length", usage, clock.report())))

    def _prepare(
        self, question: Question, clock: "_Clock", is_cancelled: Callable[[], bool]
    ) -> tuple[Prompt, Perception | None, ResolvedSampling]:
        """Prompt, media tokens and sampling; what can be refused is refused before the media is looked at."""
        sampling = self._defaults.resolve(question.options)
        noise = self._noise(question, sampling)
        media = None if question.kind is None else self._bundle.config.tokens_of(question.kind)
        prompt = build_prompt(self._bundle, self._tokenizer, question.conversation, question.kind, media or 0)
        clock.lap("prompt")
        seen = None
        if question.kind is not None:
            seen = self._perceive(question, noise, is_cancelled)
            rows = seen.rows if noise is None else seen.rows // 2
            if rows != media:  # more frames than the checkpoint's number were sent
                prompt = build_prompt(self._bundle, self._tokenizer, question.conversation, question.kind, rows)
            clock.add_perception(seen.spans)
        if is_cancelled():
            raise Cancelled("the client left")
        room = self._bundle.max_seq_len - len(prompt.input_ids)
        return prompt, seen, replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))

    def _noise(self, question: Question, sampling: ResolvedSampling) -> Noise | None:
        """Raises: InvalidRequest where there can be no contrast."""
        if not sampling.contrasts:
            return None
        if not self._bundle.encoder_engine.takes_noise:
            raise InvalidRequest(NO_CONTRAST)
        if question.kind in (None, "audio"):
            raise InvalidRequest(NO_PIXELS)
        return Noise(sampling.vcd_noise_step, sampling.seed)

    def _perceive(self, question: Question, noise: Noise | None, is_cancelled: Callable[[], bool]) -> Perception:
        """Again while a stage is being started again; not for ever, for the file itself may be what kills it."""
        assert question.kind is not None
        deadline = time.monotonic() + RESTART_SECONDS
        deaths = 0
        while True:
            try:
                return self._stages.perceive(question.kind, question.files, question.segment, noise)
            except StageRestarting as error:
                deaths += isinstance(error, StageDied)
                if deaths > DEATHS_ALLOWED or time.monotonic() > deadline or is_cancelled():
                    raise
            time.sleep(POLL_SECONDS)


def _tokens(generation: Generation, is_cancelled: Callable[[], bool]) -> Iterator[list[int]]:
    """New ids as they come, never none. Raises: Cancelled as soon as the client has left."""
    while (new := generation.next(POLL_SECONDS)) is not None:
        if is_cancelled():
            raise Cancelled("the client left")
        if new:
            yield new


class _RestartableGeneration:
    """A generation that is begun again while its stage is being started again and no token has come."""

    def __init__(self, begin: Callable[[], Generation]) -> None:
        self._begin = begin
        self._generation = begin()
        self._deadline = time.monotonic() + RESTART_SECONDS
        self._begun = False

    def next(self, timeout: float) -> list[int] | None:
        try:
            new = self._generation.next(timeout)
        except StageRestarting:
            if self._begun or time.monotonic() > self._deadline:
                raise
            time.sleep(POLL_SECONDS)
            self._generation = self._begin()
            return []
        self._begun = self._begun or bool(new)
        return new

    def stop(self) -> None:
        self._generation.stop()


class _Clock:
    """Seconds per stage of one request."""

    def __init__(self) -> None:
        self._began = time.time()
        self._last = self._start = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self._seconds[stage] = now - self._last
        self._last = now

    def add_perception(self, spans: dict[str, tuple[float, float]]) -> None:
        """A span from before this request means that the cache answered: the stage did nothing for it."""
        self.lap("perception")
        for stage, (began, ended) in spans.items():
            self._seconds[stage] = ended - began if began >= self._began else 0.0

    def report(self) -> dict[str, float]:
        return {
            **{stage: round(value, 6) for stage, value in self._seconds.items()},
            "total": round(time.monotonic() - self._start, 6),
        }
