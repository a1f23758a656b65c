"""The life of one question behind the public entry: media -> tokens -> text, in pieces.

Knows no Triton: the other stages are the interface `Stages`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from videollama_server.answers.known_media import KnownMedia, Media, MediaStages
from videollama_server.fetch.gate import MediaGate
from videollama_server.fetch.policy import MediaPolicy

URL_KINDS = ("video", "image", "audio", "video_with_audio")  # of one file


@dataclass(frozen=True)
class Question:
    conversation: Conversation
    options: SamplingOptions
    kind: str | None = None  # of the media; None for a text-only question
    files: tuple[bytes, ...] = ()
    segment: Segment = field(default_factory=Segment)
    url: str | None = None  # of the media, in place of files
    caller: str = ""  # who asks, where that is known

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
            raise InvalidRequest(f"media_url comes without media, and with one of {', '.join(URL_KINDS)} as media_kind")
        if not self.files and self.url is None:
            raise InvalidRequest(f"media_kind is {self.kind} and media is empty; send at least one file")
        size = sum(map(len, self.files))
        if size > MAX_MEDIA_BYTES:
            raise InvalidRequest(f"media has {size} bytes; the limit of a request is {MAX_MEDIA_BYTES}")
        self.segment.refuse_reversed()
        self.segment.refuse_for(self.kind)


class Stages(MediaStages, LanguageModel, Protocol):
    pass


def build_prompt(
    bundle: Bundle, tokenizer: Any, conversation: Conversation, kind: str | None, num_media_tokens: int
) -> Prompt:
    """Prompt ids of a conversation about media of a kind. Raises: InvalidRequest, PromptTooLong."""
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
    """Answers questions about one bundle. Media by URL comes through the gate; the default one is closed."""

    def __init__(
        self, bundle: Bundle, stages: Stages, gate: MediaGate | None = None, cache_bytes: int = KEPT_BYTES
    ) -> None:
        self._bundle, self._stages, self._gate = bundle, stages, gate or MediaGate(MediaPolicy())
        self.media = KnownMedia(bundle, stages, cache_bytes)
        self._tokenizer = bundle.tokenizer()
        self._defaults = bundle.generation_defaults(self._tokenizer)

    def answer(self, question: Question, replier: Replier, span: Span = NO_SPAN) -> Answering:
        """Prepare the question, and ask the language model: the answer comes piece by piece in the loop's thread.

        Args:
            span: of the question's trace; its stages become parts of it.
        Raises: Cancelled when the client has left; whatever a stage reports about the media. The replier hears of neither.
        """
        prepared = self._prepare(question, Clock(span), replier.is_cancelled)
        text = AnswerText(self._tokenizer, question.options.stop)
        answering = Answering(prepared, text, self._defaults.end_ids, self._stages, replier)
        answering.start()
        return answering

    def _prepare(self, question: Question, clock: Clock, is_cancelled: Callable[[], bool]) -> Prepared:
        """What can be refused is refused before the media is looked at."""
        sampling = self._defaults.resolve(question.options)
        noise = self._noise(question, sampling)
        self._check_options(question.options)
        media = (
            None if question.kind is None else self._bundle.config.tokens_of(question.kind, question.segment.num_frames)
        )
        prompt = build_prompt(self._bundle, self._tokenizer, question.conversation, question.kind, media or 0)
        clock.lap("prompt")
        if question.url is not None:
            question = replace(question, files=(self._gate.fetch(question.url, is_cancelled),), url=None)
            clock.lap("fetch", traced=True)
        seen = None
        if question.kind is not None:
            asked = Media(question.kind, question.files, question.segment, question.caller)
            seen = self.media.perceive(asked, noise, is_cancelled)
            rows = seen.rows if noise is None else seen.rows // 2
            if rows != media:  # more frames than the checkpoint's number were sent
                prompt = build_prompt(self._bundle, self._tokenizer, question.conversation, question.kind, rows)
            clock.add_perception(seen.spans)
        if is_cancelled():
            raise Cancelled("the client left")
        room = self._bundle.max_seq_len - len(prompt.input_ids)
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        is_video = question.kind is not None and MODALITIES[question.kind] == "video"
        return Prepared(prompt, seen, sampling, seen.looked_at if is_video and seen is not None else (), clock)

    def _noise(self, question: Question, sampling: ResolvedSampling) -> Noise | None:
        """Raises: InvalidRequest where there can be no contrast."""
        if not sampling.contrasts:
            return None
        if not self._bundle.encoder_engine.takes_noise:
            raise InvalidRequest(NO_CONTRAST)
        if question.kind in (None, "audio"):
            raise InvalidRequest(NO_PIXELS)
        return Noise(sampling.vcd_noise_step, sampling.seed)

    def _check_options(self, options: SamplingOptions) -> None:
        """Raises: InvalidRequest on an option that the language model's backend has no tensor for."""
        engine = self._bundle.language_engine
        if engine.is_backend and (asked := [option.name for option in OWN_OPTIONS if getattr(options, option.name)]):
            raise InvalidRequest(f"{asked[0]} is not an option of {engine.name}, which answers here: leave it out")
