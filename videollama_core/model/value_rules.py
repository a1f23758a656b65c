"""What the values of a model's config may be: one table of types and ranges, and how they must fit together.

A rule is named by the field of `model.config` that its value fills. Ranges hold every published model several times over;
what is outside of them is damage, or meant to exhaust the machine.
"""

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from videollama_core.model.config import TOWER_FAMILIES, ModelConfig, downsampled
from videollama_core.protocol.errors import VideoLlamaError

_MOST_GRID = 64  # patches per side; 27 in the largest published tower
_MOST_BLOCKS = 1024  # layers times experts; 256 in Mixtral 8x7B


@dataclass(frozen=True)
class Rule:
    key: str  # in the published config
    kind: type  # int, float or bool; str with choices
    least: float = 0
    most: float = 0
    choices: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        return f"{'a whole number' if self.kind is int else 'a number'} from {self.least:g} to {self.most:g}"

    def allows(self, value: object) -> bool:
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and value in self.choices
        kinds = (int,) if self.kind is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.least <= value <= self.most


def _whole(key: str, least: int, most: int) -> Rule:
    return Rule(key, int, least, most)


_EPS = (float, 1e-12, 0.1)
RULES: dict[str, dict[str, Rule]] = {
    "model": {"num_frames": _whole("num_frames", 1, 32)},
    "language": {
        "width": _whole("hidden_size", 4, 2**16),
        "mlp_width": _whole("intermediate_size", 1, 2**18),
        "layers": _whole("num_hidden_layers", 1, 512),
        "heads": _whole("num_attention_heads", 1, 1024),
        "kv_heads": _whole("num_key_value_heads", 1, 1024),
        "head_dim": _whole("head_dim", 2, 1024),
        "vocab_size": _whole("vocab_size", 2, 2**21),
        "eps": Rule("rms_norm_eps", *_EPS),
        "rope_theta": Rule("rope_theta", float, 1, 1e12),
        "max_positions": _whole("max_position_embeddings", 1, 2**24),
        "tied": Rule("tie_word_embeddings", bool),
        "experts": _whole("num_local_experts", 0, 256),
        "experts_per_token": _whole("num_experts_per_tok", 0, 256),
    },
    "vision": {
        "width": _whole("hidden_size", 4, 2**14),
        "mlp_width": _whole("intermediate_size", 1, 2**17),
        "layers": _whole("num_hidden_layers", 1, 256),
        "heads": _whole("num_attention_heads", 1, 256),
        "image_size": _whole("image_size", 4, 1672),
        "patch_size": _whole("patch_size", 1, 1672),
        "activation": Rule("hidden_act", str, choices=("quick_gelu", "gelu_pytorch_tanh", "gelu")),
        "eps": Rule("layer_norm_eps", *_EPS),
        "select_layer": _whole("mm_vision_select_layer", -257, 256),
    },
    "pixels": {"scale": Rule("rescale_factor", float, 1e-6, 1)},
    "audio": {
        "width": _whole("width", 16, 2**14),
        "mlp_width": _whole("mlp_width", 1, 2**17),
        "layers": _whole("layers", 1, 256),
        "heads": _whole("heads", 1, 256),
        "patch_width": _whole("patch_width", 1, 2**14),
        "rows": _whole("rows", 16, 2**16),
        "bins": _whole("bins", 16, 2**10),
    },
}
CONNECTOR = Rule("mm_projector_type", str, choices=("stc_connector", "stc_connector_v35"))
TOWER = Rule("the vision tower's kind", str, choices=tuple(TOWER_FAMILIES))
FAMILY = Rule("the language model's family", str, choices=("mistral", "mixtral", "qwen2"))
# Of values that no field holds: what the decoder always does, and how the positions' window is read.
FIXED_ACTIVATION = Rule("hidden_act", str, choices=("silu",))
WINDOW = _whole("sliding_window", 1, 2**31)
USE_WINDOW = Rule("use_sliding_window", bool)


def check_model(config: ModelConfig, error: Callable[[str], VideoLlamaError]) -> None:
    """Raises: `error` for a value out of its range, and for sizes that contradict one another."""
    for rule, value in ((CONNECTOR, config.connector), (TOWER, config.vision.kind), (FAMILY, config.language.family)):
        if not rule.allows(value):
            raise error(f"{rule.key} is {reprlib.repr(value)}; {rule.wanted} was wanted")
    for part, rules in RULES.items():
        values: Any = config if part == "model" else getattr(config, part)
        for name, rule in rules.items() if values is not None else ():
            value = getattr(values, name)
            if not rule.allows(value):
                raise error(f"{rule.key} of the {part} model is {reprlib.repr(value)}; {rule.wanted} was wanted")
    for problem in _contradictions(config):
        raise error(problem)


def _contradictions(config: ModelConfig) -> list[str]:
    """What does not fit together, in words."""
    language, vision, audio, pixels = config.language, config.vision, config.audio, config.pixels
    grid = vision.grid
    checks = [
        (
            language.heads % language.kv_heads == 0,
            f"{language.heads} attention heads cannot share {language.kv_heads} key heads evenly",
        ),
        (
            language.head_dim % 2 == 0,
            f"head_dim is {language.head_dim}; positions turn pairs, so an even one was wanted",
        ),
        (
            language.layers * max(1, language.experts) <= _MOST_BLOCKS,
            f"{language.layers} layers of {language.experts} experts are more than {_MOST_BLOCKS}",
        ),
        (
            language.experts_per_token <= language.experts if language.experts else True,
            f"num_experts_per_tok is {language.experts_per_token}, but there are {language.experts} experts",
        ),
        (
            vision.width % vision.heads == 0,
            f"the vision tower is {vision.width} wide, which {vision.heads} heads cannot share evenly",
        ),
        (
            1 <= grid <= _MOST_GRID,
            f"pictures of {vision.image_size} in patches of {vision.patch_size} make {grid} patches per side; "
            f"1 to {_MOST_GRID} were wanted",
        ),
        (
            0 <= vision.used_layers <= vision.layers,
            f"mm_vision_select_layer is {vision.select_layer}, but the tower has {vision.layers} layers",
        ),
        (
            pixels.size == vision.image_size,
            f"the image processor makes pictures of {pixels.size}, but the tower takes {vision.image_size}",
        ),
        (
            _are_numbers(pixels.mean, 0, 1) and _are_numbers(pixels.std, 1e-3, 10),
            "image_mean and image_std want three numbers each, from 0 to 1 and from 0.001 to 10",
        ),
        (
            audio is None or (audio.width % audio.heads == 0 and audio.width % 16 == 0),
            "the audio tower's width is no multiple of its heads and of 16",
        ),
    ]
    problems = [words for holds, words in checks if not holds]
    if problems:
        return problems
    if downsampled(config.num_frames, config.connector) < 1 or downsampled(grid, config.connector) < 1:
        return [f"{config.connector} leaves nothing of {config.num_frames} frames of {grid}x{grid} patches"]
    media = config.tokens_of("video" if audio is None else "video_with_audio")
    if media >= language.max_positions:
        return [f"max_position_embeddings is {language.max_positions}, but media alone takes {media} positions"]
    return []


def _are_numbers(values: object, least: float, most: float) -> bool:
    """Whether these are the three numbers of the three colours."""
    return (
        isinstance(values, tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and math.isfinite(value) and least <= value <= most for value in values)
    )
