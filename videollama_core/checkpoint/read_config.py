"""A checkpoint folder's config files and its tower's, checked and typed."""

import json
from pathlib import Path
from typing import Any

from videollama_core.checkpoint.variants import BEATS, LANGUAGE_MODELS, MAX_POSITIONS, TOWERS, VARIANTS
from videollama_core.model.config import (
    TOWER_FAMILIES,
    AudioConfig,
    LanguageConfig,
    ModelConfig,
    PixelConfig,
    VisionConfig,
    downsampled,
)
from videollama_core.protocol.errors import CheckpointMismatch

# model_type -> family. Early checkpoints say plain "videollama2": they are Mistral's.
FAMILIES = {
    "videollama2": "mistral",
    "videollama2_mistral": "mistral",
    "videollama2_mixtral": "mixtral",
    "videollama2_qwen2": "qwen2",
}
CONNECTORS = ("stc_connector", "stc_connector_v35")


def read_json(path: Path) -> dict[str, Any]:
    """Raises: CheckpointMismatch if the file is missing or is not a JSON object."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointMismatch(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointMismatch(f"{path} holds {type(content).__name__}; a JSON object was wanted")
    return content


def read_model_config(checkpoint: Path, tower: Path | None = None) -> ModelConfig:
    """Config of a chat checkpoint folder and of its vision tower.

    Args:
        tower: folder with the tower's config.json and preprocessor_config.json; found by `find_named_folder` when None.
    Raises: CheckpointMismatch.
    """
    return make_model_config(read_json(checkpoint / "config.json"), checkpoint, tower)


def make_model_config(content: dict[str, Any], checkpoint: Path, tower: Path | None = None) -> ModelConfig:
    """Config from the content of a checkpoint's config.json; the other arguments are those of `read_model_config`."""
    family = FAMILIES.get(content.get("model_type", ""))
    if family is None:
        raise CheckpointMismatch(
            f"{checkpoint / 'config.json'} has model_type {content.get('model_type')!r}; wanted one of {', '.join(FAMILIES)}"
        )
    if not content.get("mm_vision_tower"):
        raise CheckpointMismatch(f"{checkpoint / 'config.json'} names no mm_vision_tower: this is a text-only model")
    connector = content.get("mm_projector_type", "linear")
    if connector not in CONNECTORS:
        raise CheckpointMismatch(
            f"mm_projector_type is {connector!r}; the published checkpoints have {' or '.join(CONNECTORS)}"
        )
    vision_content, pixel_content = read_tower(checkpoint, content["mm_vision_tower"], tower)
    vision = _vision_config(vision_content, content)
    pixels = _pixel_config(pixel_content, vision)
    if content.get("mm_hidden_size", vision.width) != vision.width:
        raise CheckpointMismatch(f"mm_hidden_size is {content['mm_hidden_size']}, but the tower is {vision.width} wide")
    num_frames = content.get("num_frames", 8)
    if not isinstance(num_frames, int) or not 1 <= num_frames <= 32:
        raise CheckpointMismatch(f"num_frames is {num_frames!r}; a whole number from 1 to 32 was wanted")
    if downsampled(num_frames, connector) < 1 or downsampled(vision.grid, connector) < 1:
        raise CheckpointMismatch(
            f"{connector} leaves nothing of {num_frames} frames of {vision.grid}x{vision.grid} patches"
        )
    return ModelConfig(connector, num_frames, pixels, vision, _language_config(content, family))


def find_named_folder(checkpoint: Path, name: str) -> Path | None:
    """Folder of a tower or base model: its name as a path, from here, from the checkpoint, or from the folder around it."""
    for root in (Path(), checkpoint, checkpoint.parent) if name else ():
        if (root / name / "config.json").is_file():
            return root / name
    return None


def read_tower(checkpoint: Path, name: str, tower: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vision config and image processor of the tower, from its folder, else from the table of published towers."""
    tower = tower or find_named_folder(checkpoint, name)
    if tower is not None:
        content = read_json(tower / "config.json")
        vision = dict(content.get("vision_config", content))
        vision.setdefault("model_type", content.get("model_type", ""))
        return vision, read_json(tower / "preprocessor_config.json")
    if name in TOWERS:
        return TOWERS[name]
    raise CheckpointMismatch(
        f"the vision tower {name!r} is not a folder near {checkpoint} nor a published one ({', '.join(TOWERS)}); "
        "name its folder with --tower"
    )


def _need(content: dict[str, Any], key: str, what: str) -> Any:
    if content.get(key) is None:
        raise CheckpointMismatch(f"the config of the {what} lacks {key!r}")
    return content[key]


def _vision_config(content: dict[str, Any], model: dict[str, Any]) -> VisionConfig:
    kind = str(content.get("model_type", "")).removesuffix("_vision_model")
    if kind not in TOWER_FAMILIES:
        raise CheckpointMismatch(
            f"the vision tower has model_type {content.get('model_type')!r}; wanted {' or '.join(TOWER_FAMILIES)}"
        )
    family = TOWER_FAMILIES[kind]
    feature = model.get("mm_vision_select_feature", "patch")
    if feature != "patch":  # with the class token, no STC connector can arrange the tokens on a grid
        raise CheckpointMismatch(f"mm_vision_select_feature is {feature!r}; wanted patch")
    config = VisionConfig(
        kind=kind,
        width=_need(content, "hidden_size", "vision tower"),
        mlp_width=_need(content, "intermediate_size", "vision tower"),
        layers=_need(content, "num_hidden_layers", "vision tower"),
        heads=_need(content, "num_attention_heads", "vision tower"),
        image_size=_need(content, "image_size", "vision tower"),
        patch_size=_need(content, "patch_size", "vision tower"),
        activation=content.get("hidden_act", family.activation),
        eps=content.get("layer_norm_eps", family.eps),
        select_layer=model.get("mm_vision_select_layer", -2),
    )
    if not 0 <= config.used_layers <= config.layers:
        raise CheckpointMismatch(
            f"mm_vision_select_layer is {config.select_layer}, but the tower has {config.layers} layers"
        )
    return config


def _pixel_config(content: dict[str, Any], vision: VisionConfig) -> PixelConfig:
    size = content.get("crop_size", content.get("size")) if vision.family.crop else content.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    if size != vision.image_size:
        raise CheckpointMismatch(
            f"the image processor makes pictures of {size}, but the tower takes {vision.image_size}"
        )
    return PixelConfig(
        size=size,
        crop=vision.family.crop,
        mean=tuple(_need(content, "image_mean", "image processor")),
        std=tuple(_need(content, "image_std", "image processor")),
        scale=content.get("rescale_factor", 0.00392156862745098),
    )


def _language_config(content: dict[str, Any], family: str) -> LanguageConfig:
    def need(key: str) -> Any:
        return _need(content, key, "language model")

    if content.get("rope_scaling"):
        raise CheckpointMismatch(
            f"rope_scaling is {content['rope_scaling']}; no published checkpoint scales its positions"
        )
    width, heads = need("hidden_size"), need("num_attention_heads")
    window = content.get("sliding_window")
    max_positions = need("max_position_embeddings")
    if window and content.get("use_sliding_window", family != "qwen2") and window < max_positions:
        max_positions = window  # within the window, full attention is the same thing
    config = LanguageConfig(
        family=family,
        width=width,
        mlp_width=need("intermediate_size"),
        layers=need("num_hidden_layers"),
        heads=heads,
        kv_heads=content.get("num_key_value_heads") or heads,
        head_dim=content.get("head_dim") or width // heads,
        vocab_size=need("vocab_size"),
        eps=content.get("rms_norm_eps", 1e-6),
        rope_theta=float(
            content.get("rope_theta") or (content.get("rope_parameters") or {}).get("rope_theta") or 10000.0
        ),
        max_positions=max_positions,
        tied=bool(content.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2",
        experts=need("num_local_experts") if family == "mixtral" else 0,
        experts_per_token=content.get("num_experts_per_tok", 2) if family == "mixtral" else 0,
    )
    if config.heads % config.kv_heads:
        raise CheckpointMismatch(f"{config.heads} attention heads cannot share {config.kv_heads} key heads evenly")
    return config


def published_config(name: str) -> ModelConfig:
    """The config of a released checkpoint from its published shapes, without its folder."""
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
