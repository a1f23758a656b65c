"""What the stages exchange, as plain data. T: frames, S: image side, N: media tokens, D: width of the language model."""

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache
from typing import Any

import numpy as np

from videollama_core.protocol.contract import MAX_NEW_TOKENS
from videollama_core.protocol.errors import BadSampling, InvalidRequest, shown
from videollama_core.protocol.limits import MESSAGES, QUESTION_CHARACTERS, STOP_CHARACTERS, STOP_STRINGS

Conversation = list[dict[str, str]]
VCD_BETA, VCD_NOISE_STEP = 0.1, 500  # the defaults of the paper's code (contrast.py)


@dataclass(frozen=True)
class Frames:
    """Frames of one video, chosen and in order."""

    rgb: Sequence[np.ndarray]  # T arrays, uint8 [H, W, 3]; sizes may differ (a folder of pictures)
    index: np.ndarray  # int64 [T]; -1 for black padding
    time: np.ndarray  # float64 [T], seconds; NaN where the source has no clock


def _option(low: float, high: float, meaning: str, whole: bool = False, open_low: bool = False) -> Any:
    """An optional number. Args: whole: it must be an integer; open_low: it must be above `low`, not equal to it."""
    return field(default=None, metadata={"range": (low, high, whole, open_low), "meaning": meaning})


@dataclass(frozen=True)
class EncoderInputs:
    """Media as the encoders take them."""

    frames: np.ndarray  # uint8 [T, S, S, 3]; T = 0 for audio alone, 1 for an image
    filterbank: np.ndarray  # float32 [R, F]; R = 0 without audio
    index: np.ndarray  # int64 [T], as in Frames
    time: np.ndarray  # float64 [T], as in Frames


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens. None means the checkpoint's own default (`resolve`). Raises: BadSampling."""

    max_new_tokens: int | None = _option(1, MAX_NEW_TOKENS, "Generate at most this many tokens.", whole=True)
    temperature: float | None = _option(0, 100, "Divide the scores by this; 0 is greedy, and the default.")
    top_k: int | None = _option(0, 2**31 - 1, "Sample from the best K tokens; 0 is off.", whole=True)
    top_p: float | None = _option(0, 1, "Sample from the nucleus of this probability.", open_low=True)
    repetition_penalty: float | None = _option(
        0, 100, "Penalize generated tokens; 1 is off; the default is the checkpoint's own.", open_low=True
    )
    seed: int | None = _option(0, 2**64 - 1, "Repeat a sampled answer: the same seed gives the same text.", whole=True)
    vcd_alpha: float | None = _option(0, 100, "Weight visual contrastive decoding (VCD) by this; 0 is off.")
    vcd_beta: float | None = _option(
        0, 1, f"VCD: keep tokens at least this many times as likely as the best; the default is {VCD_BETA}."
    )
    vcd_noise_step: int | None = _option(
        0, 999, f"VCD: add the noise of this diffusion step; the default is {VCD_NOISE_STEP}.", whole=True
    )
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in number_options():
            if getattr(self, option.name) is not None:
                self._check(option.name, *option.metadata["range"])
        if self.vcd_alpha is None and (self.vcd_beta, self.vcd_noise_step) != (None, None):
            raise BadSampling("vcd_beta and vcd_noise_step have no effect without vcd_alpha; set vcd_alpha as well")
        if isinstance(self.stop, str) or not all(isinstance(word, str) and word for word in self.stop):
            raise BadSampling(f"stop is {shown(self.stop)}; it takes a list of strings that are not empty")
        STOP_STRINGS.check(len(self.stop), "stop", BadSampling)
        STOP_CHARACTERS.check(max(map(len, self.stop), default=0), "a string of stop", BadSampling)

    def _check(self, name: str, low: float, high: float, whole: bool, open_low: bool) -> None:
        value = getattr(self, name)
        kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
        good = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high  # not NaN
        if not good or (open_low and value == low):
            bounds = f"{'above' if open_low else 'at least'} {low:g} and at most {high}"
            raise BadSampling(f"{name} is {shown(value)}; it takes {'an integer' if whole else 'a number'} {bounds}")


@cache
def number_options() -> "tuple[Field[Any], ...]":
    """The fields of `SamplingOptions` that are numbers; their metadata has `range` (low, high, whole, open_low) and `meaning`."""
    return tuple(option for option in fields(SamplingOptions) if "range" in option.metadata)


@dataclass(frozen=True)
class ResolvedSampling:
    """`SamplingOptions` with the checkpoint's defaults filled in; the defaults of these fields are neutral."""

    max_new_tokens: int
    greedy: bool
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    vcd_alpha: float = 0.0
    vcd_beta: float = VCD_BETA
    vcd_noise_step: int = VCD_NOISE_STEP

    @property
    def contrasts(self) -> bool:
        """Whether a second sequence is decoded, on noised pixels."""
        return self.vcd_alpha > 0


@dataclass(frozen=True)
class GenerationDefaults:
    """The defaults in the checkpoint's generation_config.json."""

    end_ids: tuple[int, ...]
    top_k: int = 50
    repetition_penalty: float = 1.0

    def resolve(self, options: SamplingOptions) -> ResolvedSampling:
        """Apply the reference's rules: greedy unless a temperature is given, top-p 0.9, 2048 tokens."""
        temperature = 0.0 if options.temperature is None else float(options.temperature)
        if options.seed is not None:
            seed = int(options.seed)
        else:
            seed = int(np.random.default_rng().integers(0, 2**63)) if temperature > 0 else 0
        return ResolvedSampling(
            max_new_tokens=int(options.max_new_tokens or 2048),
            greedy=temperature == 0,
            temperature=temperature or 1.0,
            top_k=int(self.top_k if options.top_k is None else options.top_k),
            top_p=float(0.9 if options.top_p is None else options.top_p),
            repetition_penalty=float(
                self.repetition_penalty if options.repetition_penalty is None else options.repetition_penalty
            ),
            seed=seed,
            vcd_alpha=float(options.vcd_alpha or 0),
            vcd_beta=float(VCD_BETA if options.vcd_beta is None else options.vcd_beta),
            vcd_noise_step=int(VCD_NOISE_STEP if options.vcd_noise_step is None else options.vcd_noise_step),
        )


def as_conversation(question: "str | Sequence[dict[str, str]]") -> Conversation:
    """A question or a list of messages, as a checked list. Raises: InvalidRequest if it is neither, or over a limit."""
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    if not isinstance(question, (list, tuple)) or not question:
        found = "empty" if isinstance(question, (list, tuple)) else f"of type {type(question).__name__}"
        raise InvalidRequest(f"the question is {found}; expected a string or a list of messages")
    MESSAGES.check(len(question), "the conversation")
    for position, message in enumerate(question):
        if (
            not isinstance(message, dict)
            or set(message) != {"role", "content"}
            or not all(isinstance(value, str) for value in message.values())
        ):
            raise InvalidRequest(f"message {position} must be an object of exactly two strings, role and content")
        if message["role"] not in ("user", "assistant", "system"):
            raise InvalidRequest(
                f"message {position} has role {shown(message['role'])}; roles are user and assistant, and system for the first"
            )
        if message["role"] == "system" and position:
            raise InvalidRequest(
                f"message {position} has role 'system'; only the first message may be a system message"
            )
    turns = question[1:] if question[0]["role"] == "system" else question
    if not turns or turns[0]["role"] != "user":
        role = repr(turns[0]["role"]) if turns else "nothing"
        raise InvalidRequest(
            f"the conversation begins with {role}; it must begin with the user, after a system message if there is one"
        )
    QUESTION_CHARACTERS.check(sum(len(message["content"]) for message in question), "the question")
    for message in question:
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the text contains a lone surrogate at character {error.start}") from None
    return [dict(message) for message in question]


@dataclass(frozen=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int  # text of the prompt, template included, media excluded
    media_tokens: int
    completion_tokens: int  # the end token counts, if there was one
    # Tokens of the prompt, media included, that were reused from the KV cache of an earlier prompt with the same prefix.
    # 0 where the engine does not report it (TensorRT-LLM, vLLM).
    cached_tokens: int = 0


@dataclass(frozen=True)
class FrameSeen:
    """A frame that was given to the model."""

    index: int  # its position in the video, from 0
    seconds: float | None  # into the video, by its own timestamps; None where it has none


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    text: str
    output_ids: list[int]
    finish_reason: str  # "stop" (end token or stop string) or "length"
    usage: Usage
    seconds: dict[str, float]  # by stage, and "total"
    frames: tuple[FrameSeen, ...] = ()  # in order; empty for a picture, audio or text
