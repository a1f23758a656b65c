"""The config files of a checkpoint folder and of its vision tower, validated and typed."""

import os
from pathlib import Path
from typing import Any

from videollama_core.checkpoint.files import read_json, shown
from videollama_core.checkpoint.variants import BEATS, LANGUAGE_MODELS, MAX_POSITIONS, TOWERS, VARIANTS
from videollama_core.model.config import (
    TOWER_FAMILIES,
    AudioConfig,
    LanguageConfig,
    ModelConfig,
    PixelConfig,
    VisionConfig,
)
from videollama_core.model.value_rules import CONNECTOR, FIXED_ACTIVATION, RULES, USE_WINDOW, WINDOW, Rule, check_model
from videollama_core.protocol.errors import CheckpointMismatch

# model_type -> family. Early checkpoints have plain "videollama2": they use Mistral.
FAMILIES = {
    "videollama2": "mistral",
    "videollama2_mistral": "mistral",
    "videollama2_mixtral": "mixtral",
    "videollama2_qwen2": "qwen2",
}
_LONGEST_NAME = 1024


def read_model_config(checkpoint: Path, tower: Path | None = None) -> ModelConfig:
    """Config of a chat checkpoint folder and of its vision tower.

    Args:
        tower: folder with the tower's config.json and preprocessor_config.json; found by `find_named_folder` when None.
    Raises: CheckpointMismatch.
    """
    return make_model_config(read_json(checkpoint / "config.json"), checkpoint, tower)


def make_model_config(content: dict[str, Any], checkpoint: Path, tower: Path | None = None) -> ModelConfig:
    """Config from the content of a checkpoint's config.json; other arguments and errors as in `read_model_config`."""
    kind = content.get("model_type", "")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise CheckpointMismatch(
            f"{checkpoint / 'config.json'} has model_type {shown(kind)}; expected one of {', '.join(FAMILIES)}"
        )
    name = read_name(content, "mm_vision_tower")
    if not name:
        raise CheckpointMismatch(f"{checkpoint / 'config.json'} names no mm_vision_tower: this is a text-only model")
    connector = content.get("mm_projector_type", "linear")
    if not CONNECTOR.allows(connector):
        raise CheckpointMismatch(
            f"mm_projector_type is {shown(connector)}; the published checkpoints have {CONNECTOR.expected}"
        )
    vision_content, pixel_content = read_tower(checkpoint, name, tower)
    vision = _vision_config(vision_content, content)
    if content.get("mm_hidden_size", vision.width) != vision.width:
        raise CheckpointMismatch(
            f"mm_hidden_size is {shown(content['mm_hidden_size'])}, but the tower is {vision.width} wide"
        )
    config = ModelConfig(
        connector=connector,
        num_frames=_value(content, RULES["model"]["num_frames"], "checkpoint", 8),
        pixels=_pixel_config(pixel_content, vision),
        vision=vision,
        language=_language_config(content, family),
    )
    check_model(config, CheckpointMismatch)
    return config


def read_name(content: dict[str, Any], key: str) -> str:
    """A config's name for another folder; "" if it has none. Raises: CheckpointMismatch."""
    name = content.get(key) or ""
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or not name.isprintable():
        raise CheckpointMismatch(f"{key} is {shown(name)}; expected the name of a folder")
    return name


def find_named_folder(checkpoint: Path, name: str) -> Path | None:
    """Folder of a tower or base model: its name as a path from here, from the checkpoint, or from the checkpoint's parent.

    Names with `..` are ignored: they would let an untrusted checkpoint refer to any folder.
    """
    for root in (Path(), checkpoint, checkpoint.parent) if name and ".." not in Path(name).parts else ():
        if os.path.lexists(root / name / "config.json"):
            return root / name
    return None


def read_tower(checkpoint: Path, name: str, tower: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vision config and image processor config of the tower, from its folder or the table of published towers.

    Raises: CheckpointMismatch.
    """
    tower = tower or find_named_folder(checkpoint, name)
    if tower is not None:
        content = read_json(tower / "config.json")
        vision = content.get("vision_config", content)
        if not isinstance(vision, dict):
            raise CheckpointMismatch(f"vision_config of {tower} is {shown(vision)}; expected a JSON object")
        return {"model_type": content.get("model_type", "")} | vision, read_json(tower / "preprocessor_config.json")
    if name in TOWERS:
        return TOWERS[name]
    raise CheckpointMismatch(
        f"the vision tower {name!r} is not a folder near {checkpoint} nor a published one ({', '.join(TOWERS)}); "
        "name its folder with --tower"
    )


_REQUIRED = object()


def _value(content: dict[str, Any], rule: Rule, part: str, default: Any = _REQUIRED) -> Any:
    """A config's value, checked by its rule; null counts as absent. Raises: CheckpointMismatch."""
    value = content.get(rule.key)
    if value is None and default is not _REQUIRED:
        return default
    if value is None:
        raise CheckpointMismatch(f"the config of the {part} lacks {rule.key!r}")
    if not rule.allows(value):
        raise CheckpointMismatch(f"{rule.key} of the {part} is {shown(value)}; expected {rule.expected}")
    return float(value) if rule.kind is float else value


def _vision_config(content: dict[str, Any], model: dict[str, Any]) -> VisionConfig:
    kind = str(content.get("model_type", "")).removesuffix("_vision_model")
    if kind not in TOWER_FAMILIES:
        raise CheckpointMismatch(
            f"the vision tower has model_type {shown(content.get('model_type'))}; expected {' or '.join(TOWER_FAMILIES)}"
        )
    family = TOWER_FAMILIES[kind]
    feature = model.get("mm_vision_select_feature", "patch")
    if feature != "patch":  # with the class token, the STC connector could not arrange the tokens on a grid
        raise CheckpointMismatch(f"mm_vision_select_feature is {shown(feature)}; expected patch")
    rules, part = RULES["vision"], "vision tower"
    sizes = ("width", "mlp_width", "layers", "heads", "image_size", "patch_size")
    return VisionConfig(
        kind=kind,
        activation=_value(content, rules["activation"], part, family.activation),
        eps=_value(content, rules["eps"], part, family.eps),
        select_layer=_value(model, rules["select_layer"], "checkpoint", -2),
        **{name: _value(content, rules[name], part) for name in sizes},
    )


def _pixel_config(content: dict[str, Any], vision: VisionConfig) -> PixelConfig:
    size = content.get("crop_size", content.get("size")) if vision.family.crop else content.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    if size != vision.image_size:
        raise CheckpointMismatch(
            f"the image processor produces images of {shown(size)} pixels, but the tower takes {vision.image_size}"
        )
    mean, std = content.get("image_mean"), content.get("image_std")
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        raise CheckpointMismatch(
            f"the image processor has image_mean {shown(mean)} and image_std {shown(std)}; expected three numbers each"
        )
    scale = _value(content, RULES["pixels"]["scale"], "image processor", PixelConfig.scale)
    return PixelConfig(vision.image_size, vision.family.crop, tuple(mean), tuple(std), scale)


def _language_config(content: dict[str, Any], family: str) -> LanguageConfig:
    rules, part = RULES["language"], "language model"

    def value(field: str, default: Any = _REQUIRED) -> Any:
        return _value(content, rules[field], part, default)

    if content.get("rope_scaling"):
        raise CheckpointMismatch(
            f"rope_scaling is {shown(content['rope_scaling'])}, which is not supported; no published checkpoint uses it"
        )
    _value(content, FIXED_ACTIVATION, part, "silu")
    width, heads, max_positions = value("width"), value("heads"), value("max_positions")
    window = _value(content, WINDOW, part, None)
    if window and _value(content, USE_WINDOW, part, family != "qwen2") and window < max_positions:
        max_positions = window  # within the window, full attention is equivalent
    if content.get("head_dim") is None and width % heads:
        raise CheckpointMismatch(f"hidden_size is {width}, which {heads} attention heads cannot share evenly")
    nested = content.get("rope_parameters")
    theta = content if content.get("rope_theta") is not None or not isinstance(nested, dict) else nested
    return LanguageConfig(
        family=family,
        width=width,
        mlp_width=value("mlp_width"),
        layers=value("layers"),
        heads=heads,
        kv_heads=value("kv_heads", heads),
        head_dim=value("head_dim", width // heads),
        vocab_size=value("vocab_size"),
        eps=value("eps", 1e-6),
        rope_theta=_value(theta, rules["rope_theta"], part, 10000.0),
        max_positions=max_positions,
        tied=value("tied", False),
        qkv_bias=family == "qwen2",
        experts=value("experts") if family == "mixtral" else 0,
        experts_per_token=value("experts_per_token", 2) if family == "mixtral" else 0,
    )


def published_config(name: str) -> ModelConfig:
    """The config of a released checkpoint (a key of VARIANTS) from its published shapes, without its folder."""
    variant = VARIANTS[name]
    vision_content, pixel_content = TOWERS[variant.tower]
    content = LANGUAGE_MODELS[variant.language_model] | {"max_position_embeddings": MAX_POSITIONS}
    vision = _vision_config(vision_content, {})
    return ModelConfig(
        connector=variant.connector,
        num_frames=variant.num_frames,
        pixels=_pixel_config(pixel_content, vision),
        vision=vision,
        language=_language_config(content, variant.family),
        audio=AudioConfig(**BEATS) if variant.audio else None,
    )
