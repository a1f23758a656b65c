"""Validation of a model's config: one table of types and ranges, and the consistency of the values.

A rule is named after the field of `model.config` that its value fills. Ranges exceed every published model several times;
a value outside of them means damage, or an attempt to exhaust the machine.
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
    """The allowed values of one config entry; `least` and `most` are inclusive."""

    key: str  # in the published config
    kind: type  # int, float or bool; str with choices
    least: float = 0
    most: float = 0
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """The allowed values in words, for an error message."""
        if self.choices:
            return " or ".join(self.choices)
        if self.kind is bool:
            return "true or false"
        return f"{'an integer' if self.kind is int else 'a number'} from {self.least:g} to {self.most:g}"

    def allows(self, value: object) -> bool:
        """Whether a value has the right type and is in range; a bool is not a number."""
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and value in self.choices
        kinds = (int,) if self.kind is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.least <= value <= self.most


def _integer(key: str, least: int, most: int) -> Rule:
    return Rule(key, int, least, most)


_EPS = (float, 1e-12, 0.1)
RULES: dict[str, dict[str, Rule]] = {
    "model": {"num_frames": _integer("num_frames", 1, 32)},
    "language": {
        "width": _integer("hidden_size", 4, 2**16),
        "mlp_width": _integer("intermediate_size", 1, 2**18),
        "layers": _integer("num_hidden_layers", 1, 512),
        "heads": _integer("num_attention_heads", 1, 1024),
        "kv_heads": _integer("num_key_value_heads", 1, 1024),
        "head_dim": _integer("head_dim", 2, 1024),
        "vocab_size": _integer("vocab_size", 2, 2**21),
        "eps": Rule("rms_norm_eps", *_EPS),
        "rope_theta": Rule("rope_theta", float, 1, 1e12),
        "max_positions": _integer("max_position_embeddings", 1, 2**24),
        "tied": Rule("tie_word_embeddings", bool),
        "experts": _integer("num_local_experts", 0, 256),
        "experts_per_token": _integer("num_experts_per_tok", 0, 256),
    },
    "vision": {
        "width": _integer("hidden_size", 4, 2**14),
        "mlp_width": _integer("intermediate_size", 1, 2**17),
        "layers": _integer("num_hidden_layers", 1, 256),
        "heads": _integer("num_attention_heads", 1, 256),
        "image_size": _integer("image_size", 4, 1672),
        "patch_size": _integer("patch_size", 1, 1672),
        "activation": Rule("hidden_act", str, choices=("quick_gelu", "gelu_pytorch_tanh", "gelu")),
        "eps": Rule("layer_norm_eps", *_EPS),
        "select_layer": _integer("mm_vision_select_layer", -257, 256),
    },
    "pixels": {"scale": Rule("rescale_factor", float, 1e-6, 1)},
    "audio": {
        "width": _integer("width", 16, 2**14),
        "mlp_width": _integer("mlp_width", 1, 2**17),
        "layers": _integer("layers", 1, 256),
        "heads": _integer("heads", 1, 256),
        "patch_width": _integer("patch_width", 1, 2**14),
        "rows": _integer("rows", 16, 2**16),
        "bins": _integer("bins", 16, 2**10),
    },
}
CONNECTOR = Rule("mm_projector_type", str, choices=("stc_connector", "stc_connector_v35"))
TOWER = Rule("the vision tower's kind", str, choices=tuple(TOWER_FAMILIES))
FAMILY = Rule("the language model's family", str, choices=("mistral", "mixtral", "qwen2"))
# Values that no field holds: the decoder's fixed activation, and how the attention window is read.
FIXED_ACTIVATION = Rule("hidden_act", str, choices=("silu",))
WINDOW = _integer("sliding_window", 1, 2**31)
USE_WINDOW = Rule("use_sliding_window", bool)


def check_model(config: ModelConfig, error: Callable[[str], VideoLlamaError]) -> None:
    """Raises: `error` for a value out of its range, and for inconsistent sizes."""
    for rule, value in ((CONNECTOR, config.connector), (TOWER, config.vision.kind), (FAMILY, config.language.family)):
        if not rule.allows(value):
            raise error(f"{rule.key} is {reprlib.repr(value)}; expected {rule.expected}")
    for part, rules in RULES.items():
        values: Any = config if part == "model" else getattr(config, part)
        for name, rule in rules.items() if values is not None else ():
            value = getattr(values, name)
            if not rule.allows(value):
                raise error(f"{rule.key} of the {part} model is {reprlib.repr(value)}; expected {rule.expected}")
    for problem in _contradictions(config):
        raise error(problem)


def _contradictions(config: ModelConfig) -> list[str]:
    """Messages about inconsistent values; empty if there are none."""
    language, vision, audio, pixels = config.language, config.vision, config.audio, config.pixels
    grid = vision.grid
    checks = [
        (
            language.heads % language.kv_heads == 0,
            f"{language.heads} attention heads cannot share {language.kv_heads} key heads evenly",
        ),
        (
            language.head_dim % 2 == 0,
            f"head_dim is {language.head_dim}; rotary embeddings rotate pairs, so it must be even",
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
            f"images of {vision.image_size} pixels in patches of {vision.patch_size} make {grid} patches per side; "
            f"expected 1 to {_MOST_GRID}",
        ),
        (
            0 <= vision.used_layers <= vision.layers,
            f"mm_vision_select_layer is {vision.select_layer}, but the tower has {vision.layers} layers",
        ),
        (
            pixels.size == vision.image_size,
            f"the image processor produces images of {pixels.size} pixels, but the tower takes {vision.image_size}",
        ),
        (
            _are_numbers(pixels.mean, 0, 1) and _are_numbers(pixels.std, 1e-3, 10),
            "image_mean and image_std must be three numbers each, from 0 to 1 and from 0.001 to 10",
        ),
        (
            audio is None or (audio.width % audio.heads == 0 and audio.width % 16 == 0),
            "the audio tower's width is not a multiple of its heads and of 16",
        ),
    ]
    problems = [problem for holds, problem in checks if not holds]
    if problems:
        return problems
    if downsampled(config.num_frames, config.connector) < 1 or downsampled(grid, config.connector) < 1:
        return [f"{config.connector} leaves nothing of {config.num_frames} frames of {grid}x{grid} patches"]
    media = config.tokens_of("video" if audio is None else "video_with_audio")
    if media >= language.max_positions:
        return [f"max_position_embeddings is {language.max_positions}, but media alone takes {media} positions"]
    return []


def _are_numbers(values: object, least: float, most: float) -> bool:
    """Whether `values` is a tuple of one number per colour, each from `least` to `most`."""
    return (
        isinstance(values, tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and math.isfinite(value) and least <= value <= most for value in values)
    )
