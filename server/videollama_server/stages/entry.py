"""How the entry answers one question: media -> media tokens -> text, in pieces.

Independent of Triton: it reaches the other stages through the interface `Stages`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

from videollama_core.contrast import NO_CONTRAST, NO_PIXELS, Noise
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_cache import KEPT_BYTES
from videollama_core.media.video import Segment
from videollama_core.prompt import MODALITIES, Prompt, check_length, render_prompt, tokenize_prompt
from videollama_core.protocol.contract import MAX_MEDIA_BYTES, MEDIA_KINDS, OWN_OPTIONS
from videollama_core.protocol.errors import Cancelled, InvalidRequest, PromptTooLong
from videollama_core.protocol.messages import Conversation, ResolvedSampling, SamplingOptions
from videollama_core.telemetry.traces import NO_SPAN, Span
from videollama_core.text import AnswerText
from videollama_server.answers.answering import Answering, Clock, LanguageModel, Prepared, Replier
from videollama_server.answers.known_media import KnownMedia, Media, MediaStages, Perception
from videollama_server.fetch.gate import MediaGate
from videollama_server.fetch.policy import MediaPolicy

_KNOWN_PROMPTS = 256  # prompts that are kept,
_KNOWN_CHARACTERS = 4096  # of conversations up to this length
URL_KINDS = ("video", "image", "audio", "video_with_audio")  # the kinds that consist of one file


@dataclass(frozen=True)
class Question:
    """A question as the entry answers it. Raises: InvalidRequest, BadSegment if its parts do not fit together."""

    conversation: Conversation
    options: SamplingOptions
    kind: str | None = None  # of the media; None for a text-only question
    files: tuple[bytes, ...] = ()
    segment: Segment = field(default_factory=Segment)
    url: str | None = None  # of the media, instead of files
    caller: str = ""  # the mark of the caller; "" if unknown

    def __post_init__(self) -> None:
        if self.kind is None:
            if self.files or self.url is not None:
                raise InvalidRequest(f"media came without media_kind; it takes one of {', '.join(MEDIA_KINDS)}")
            if self.segment != Segment():
                raise InvalidRequest("start, end, num_frames or sampling came without a video")
            return
        if self.kind not in MEDIA_KINDS:
            raise InvalidRequest(f"media_kind is {self.kind!r}; it takes one of {', '.join(MEDIA_KINDS)}")
        if self.url is not None and (self.files or self.kind not in URL_KINDS):
            raise InvalidRequest(f"send media_url without media, and media_kind as one of {', '.join(URL_KINDS)}")
        if not self.files and self.url is None:
            raise InvalidRequest(f"media_kind is {self.kind} and media is empty; send at least one file")
        size = sum(map(len, self.files))
        if size > MAX_MEDIA_BYTES:
            raise InvalidRequest(f"media has {size} bytes; the limit of a request is {MAX_MEDIA_BYTES}")
        self.segment.refuse_reversed()
        self.segment.refuse_for(self.kind)


def _media_of(question: Question) -> Media:
    assert question.kind is not None
    return Media(question.kind, question.files, question.segment, question.caller)


class Stages(MediaStages, LanguageModel, Protocol):
    pass


def build_prompt(
    bundle: Bundle, tokenizer: Any, conversation: Conversation, kind: str | None, num_media_tokens: int
) -> Prompt:
    """Return the prompt ids of a conversation about media of this kind. Raises: InvalidRequest, PromptTooLong."""
    if num_media_tokens < 0:
        raise InvalidRequest(f"found {num_media_tokens} media tokens; there are 0 or more")
    if num_media_tokens >= bundle.max_seq_len:
        raise PromptTooLong(
            f"found {num_media_tokens} media tokens; the context holds {bundle.max_seq_len} with the question and the answer"
        )
    language = bundle.config.language
    modality = "text" if kind is None else MODALITIES[kind]
    rendered = render_prompt(tokenizer, language.family, conversation, modality)
    prompt = tokenize_prompt(tokenizer, rendered, modality, num_media_tokens, language.vocab_size)
    check_length(prompt, bundle.max_seq_len)
    return prompt


class Entry:
    """Answers questions with one bundle.

    Args:
        gate: fetches media by URL; the default gate refuses every URL.
        cache_bytes: of the cache of recently used media.
    """

    def __init__(
        self, bundle: Bundle, stages: Stages, gate: MediaGate | None = None, cache_bytes: int = KEPT_BYTES
    ) -> None:
        self._bundle, self._stages, self._gate = bundle, stages, gate or MediaGate(MediaPolicy())
        self.media = KnownMedia(bundle, stages, cache_bytes)
        self._tokenizer, self._language_engine = bundle.tokenizer(), bundle.language_engine
        self._defaults = bundle.generation_defaults(self._tokenizer)
        self._known_prompt = lru_cache(_KNOWN_PROMPTS)(self._make_prompt)

    def cached(self, question: Question) -> Perception | None:
        """The media tokens, if `answer` would need no other stage than the language model for this question about media."""
        if question.kind is None or question.url is not None or question.options.vcd_alpha:
            return None
        return self.media.find(_media_of(question))

    def answer(
        self, question: Question, replier: Replier, span: Span = NO_SPAN, cached: Perception | None = None
    ) -> Answering:
        """Prepare the question and call the language model; the pieces of the answer are sent in the loop's thread.

        Args:
            span: of the question's trace; the stages become its child spans.
            cached: the result of `cached`.
        Raises: Cancelled if the client has disconnected; the error of a stage. Neither is sent to the replier.
        """
        prepared = self._prepare(question, Clock(span), replier.is_cancelled, cached)
        text = AnswerText(self._tokenizer, question.options.stop)
        answering = Answering(prepared, text, self._defaults.end_ids, self._stages, replier)
        answering.start()
        return answering

    def _prepare(
        self, question: Question, clock: Clock, is_cancelled: Callable[[], bool], cached: Perception | None = None
    ) -> Prepared:
        """Check everything that needs no media before the media is processed."""
        sampling = self._defaults.resolve(question.options)
        noise = self._noise(question, sampling)
        self._check_options(question.options)
        expected_rows = (
            None if question.kind is None else self._bundle.config.tokens_of(question.kind, question.segment.num_frames)
        )
        prompt = self._prompt(question, expected_rows or 0)
        clock.lap("prompt")
        if question.url is not None:
            question = replace(question, files=(self._gate.fetch(question.url, is_cancelled),), url=None)
            clock.lap("fetch", traced=True)
        perception = cached
        if question.kind is not None:
            if perception is None:
                perception = self.media.perceive(_media_of(question), noise, is_cancelled)
            rows = perception.rows if noise is None else perception.rows // 2
            if rows != expected_rows:  # more frames were sent than the checkpoint's number
                prompt = self._prompt(question, rows)
            clock.add_perception(perception.spans)
        if is_cancelled():
            raise Cancelled("the client disconnected")
        room = self._bundle.max_seq_len - len(prompt.input_ids)
        if sampling.max_new_tokens > room:
            sampling = replace(sampling, max_new_tokens=room)
        is_video = question.kind is not None and MODALITIES[question.kind] == "video"
        frames = perception.frames_seen if is_video and perception is not None else ()
        return Prepared(prompt, perception, sampling, frames, clock)

    def _prompt(self, question: Question, rows: int) -> Prompt:
        """Build the prompt, or reuse that of an equal question: many callers ask the same about each of their media."""
        turns = tuple((message["role"], message["content"]) for message in question.conversation)
        is_short = sum(len(content) for _, content in turns) <= _KNOWN_CHARACTERS
        return (self._known_prompt if is_short else self._make_prompt)(turns, question.kind, rows)

    def _make_prompt(self, turns: tuple[tuple[str, str], ...], kind: str | None, rows: int) -> Prompt:
        conversation = [{"role": role, "content": content} for role, content in turns]
        prompt = build_prompt(self._bundle, self._tokenizer, conversation, kind, rows)
        prompt.input_ids.flags.writeable = False  # several questions may share it
        return prompt

    def _noise(self, question: Question, sampling: ResolvedSampling) -> Noise | None:
        """Return the noise of contrastive decoding, if requested. Raises: InvalidRequest if it cannot be applied."""
        if not sampling.contrasts:
            return None
        if not self._bundle.encoder_engine.takes_noise:
            raise InvalidRequest(NO_CONTRAST)
        if question.kind in (None, "audio"):
            raise InvalidRequest(NO_PIXELS)
        return Noise(sampling.vcd_noise_step, sampling.seed)

    def _check_options(self, options: SamplingOptions) -> None:
        """Raises: InvalidRequest for an option that the language model's backend has no tensor for."""
        engine = self._language_engine
        if engine.is_backend and (names := [option.name for option in OWN_OPTIONS if getattr(options, option.name)]):
            raise InvalidRequest(f"{names[0]} is not supported by {engine.name}, this server's engine; omit it")
