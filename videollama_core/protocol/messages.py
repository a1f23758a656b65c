"""What flows between the stages, as plain data. T frames, S image side, N media tokens, D language model width."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from videollama_core.protocol.contract import MAX_NEW_TOKENS
from videollama_core.protocol.errors import BadSampling, InvalidRequest

Conversation = list[dict[str, str]]
VCD_BETA, VCD_NOISE_STEP = 0.1, 500  # the defaults of the paper's code (contrast.py)


@dataclass(frozen=True)
class Frames:
    """Frames of one video, chosen and in order."""

    rgb: Sequence[np.ndarray]  # T arrays, uint8 [H, W, 3]; sizes may differ (a folder of pictures)
    index: np.ndarray  # int64 [T]; -1 for black padding
    time: np.ndarray  # float64 [T], seconds; NaN where the source has no clock


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens. None means the checkpoint's own default (`resolve`)."""

    max_new_tokens: int | None = None
    temperature: float | None = None  # 0 is greedy
    top_k: int | None = None  # 0 is off
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = field(default=())
    vcd_alpha: float | None = None  # weight of visual contrastive decoding (contrast.py); 0 is off
    vcd_beta: float | None = None
    vcd_noise_step: int | None = None

    def __post_init__(self) -> None:
        self._number("max_new_tokens", 1, MAX_NEW_TOKENS, whole=True)
        self._number("temperature", 0, 100)
        self._number("top_k", 0, 2**31 - 1, whole=True)
        self._number("top_p", 0, 1, open_low=True)
        self._number("repetition_penalty", 0, 100, open_low=True)
        self._number("seed", 0, 2**64 - 1, whole=True)
        self._number("vcd_alpha", 0, 100)
        self._number("vcd_beta", 0, 1)
        self._number("vcd_noise_step", 0, 999, whole=True)
        if self.vcd_alpha is None and (self.vcd_beta, self.vcd_noise_step) != (None, None):
            raise BadSampling("vcd_beta and vcd_noise_step came without vcd_alpha, which turns the contrast on")
        if isinstance(self.stop, str) or not all(isinstance(word, str) and word for word in self.stop):
            raise BadSampling(f"stop is {self.stop!r}; it takes a list of strings that are not empty")
        if len(self.stop) > 16 or any(len(word) > 1000 for word in self.stop):
            raise BadSampling("stop takes at most 16 strings of at most 1000 characters")

    def _number(self, name: str, low: float, high: float, whole: bool = False, open_low: bool = False) -> None:
        value = getattr(self, name)
        if value is None:
            return
        kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
        good = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value > high or value < low or (open_low and value <= low):
            wanted = f"{'above' if open_low else 'at least'} {low:g} and at most {high}"
            raise BadSampling(f"{name} is {value!r}; it takes {'a whole number' if whole else 'a number'} {wanted}")


@dataclass(frozen=True)
class ResolvedSampling:
    """`SamplingOptions` with the checkpoint's defaults filled in."""

    max_new_tokens: int
    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    vcd_alpha: float = 0.0
    vcd_beta: float = VCD_BETA
    vcd_noise_step: int = VCD_NOISE_STEP

    @property
    def contrasts(self) -> bool:
        """Whether a second sequence runs, about noised pixels."""
        return self.vcd_alpha > 0


@dataclass(frozen=True)
class GenerationDefaults:
    """What the checkpoint's generation_config.json decides."""

    end_ids: tuple[int, ...]
    top_k: int = 50
    repetition_penalty: float = 1.0

    def resolve(self, options: SamplingOptions) -> ResolvedSampling:
        """The reference's rules: greedy unless a temperature is asked for, top-p 0.9, 2048 tokens."""
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
    """A question or a list of messages, as messages. Raises: InvalidRequest if it is neither."""
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    if not isinstance(question, (list, tuple)) or not question:
        raise InvalidRequest(f"found {type(question).__name__}; the question is a string or a list of messages")
    for position, message in enumerate(question):
        if (
            not isinstance(message, dict)
            or set(message) != {"role", "content"}
            or not all(isinstance(value, str) for value in message.values())
        ):
            raise InvalidRequest(f"message {position} must be an object with the strings role and content alone")
        if message["role"] not in ("user", "assistant", "system"):
            raise InvalidRequest(f"message {position} has role {message['role']!r}; roles are user and assistant")
    if question[0]["role"] != "user":
        raise InvalidRequest(f"the first message has role {question[0]['role']!r}; it must be the user's")
    return [dict(message) for message in question]


def conversation_from_json(text: str) -> Conversation:
    try:
        return as_conversation(json.loads(text))
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"messages is not JSON: {error}") from error


@dataclass(frozen=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int  # text of the prompt, template included, media excluded
    media_tokens: int
    completion_tokens: int  # the end token counts, if there was one


@dataclass(frozen=True)
class Answer:
    text: str
    output_ids: list[int]
    finish_reason: str  # "stop" (end token or stop string) or "length"
    usage: Usage
    seconds: dict[str, float]  # by stage, and "total"
