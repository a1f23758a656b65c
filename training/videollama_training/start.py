"""Opens the parts that a run starts from: a checkpoint, or separate parts with a newly initialized connector or projector."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videollama_core.checkpoint.files import read_json
from videollama_core.checkpoint.layout import Folders
from videollama_core.checkpoint.parts import CheckpointParts, open_checkpoint
from videollama_core.checkpoint.read_config import make_model_config
from videollama_core.checkpoint.shards import Sources
from videollama_core.model import audio, connector
from videollama_core.model.audio import AudioTower
from videollama_core.model.config import AudioConfig
from videollama_core.model.connector import Connector
from videollama_core.protocol.errors import CheckpointMismatch, InvalidRequest
from videollama_training.options import TrainingOptions

MODEL_TYPES = {
    "mistral": "videollama2_mistral",
    "mixtral": "videollama2_mixtral",
    "qwen2": "videollama2_qwen2",
}
NUM_FRAMES, SELECT_LAYER = 8, -2
# Settings that audio.py implements; a file with other values is not supported.
_BEATS = {
    "input_patch_size": audio.PATCH,
    "conv_pos": audio.KERNEL,
    "conv_pos_groups": audio.GROUPS,
    "num_buckets": audio.BUCKETS,
    "max_distance": audio.MAX_DISTANCE,
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "activation_fn": "gelu",
}


def open_start(options: TrainingOptions) -> CheckpointParts:
    """The parts that `options` names. New weights depend only on its seed. Raises: CheckpointMismatch, InvalidRequest."""
    parts = _open_plain(options) if options.checkpoint is None else _open_checkpoint(options)
    if options.audio_tower is None:
        return parts
    if parts.config.audio is not None:
        raise InvalidRequest(f"{options.checkpoint} already has an audio tower: leave out --audio-tower")
    return _with_audio(parts, options.audio_tower, options.seed)


def _open_checkpoint(options: TrainingOptions) -> CheckpointParts:
    assert options.checkpoint is not None
    if options.checkpoint.is_dir():
        model_type = read_json(options.checkpoint / "config.json").get("model_type")
        if model_type in MODEL_TYPES:
            raise CheckpointMismatch(
                f"{options.checkpoint} is only a language model ({model_type}): name it with --base, "
                "a vision tower with --tower, and add --connector stc_connector_v35"
            )
    return open_checkpoint(options.checkpoint, options.tower, options.base)


def _open_plain(options: TrainingOptions) -> CheckpointParts:
    """A plain language model, a vision tower, and a newly initialized connector."""
    base, tower, kind = options.base, options.tower, options.connector
    if base is None or tower is None:
        raise InvalidRequest(
            "--connector needs --base (a language model's folder) and --tower (a vision tower's folder)"
        )
    language = read_json(base / "config.json")
    if language.get("model_type") not in MODEL_TYPES:
        raise CheckpointMismatch(
            f"{base} has model_type {language.get('model_type')!r}; expected a plain language model: "
            + ", ".join(MODEL_TYPES)
        )
    content: dict[str, Any] = language | {
        "model_type": MODEL_TYPES[language["model_type"]],
        "mm_vision_tower": str(tower.resolve()),
        "mm_vision_select_layer": SELECT_LAYER if options.select_layer is None else options.select_layer,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": kind,
        "num_frames": NUM_FRAMES if options.num_frames is None else options.num_frames,
        "use_mm_proj": True,
    }
    config = make_model_config(content, base, tower)
    content["mm_hidden_size"] = config.vision.width
    fresh = _fresh(partial(Connector, config), connector.PREFIX, options.seed)
    return CheckpointParts(config, Folders("fresh", base, tower, base), content, fresh)


class _Fresh:
    """A module with PyTorch's default initial weights, in memory from the reading of its first tensor to that of its last."""

    def __init__(self, make: Callable[[], nn.Module], seed: int) -> None:
        self.make, self.seed = make, seed
        self.unread: dict[str, Tensor] = {}

    def read(self, name: str) -> Tensor:
        if name not in self.unread:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.unread = dict(self.make().state_dict())
        return self.unread.pop(name)


def _fresh(make: Callable[[], nn.Module], prefix: str, seed: int) -> Sources:
    with torch.device("meta"):
        names = list(make().state_dict())
    module = _Fresh(make, seed)
    return {prefix + name: partial(module.read, name) for name in names}


def _audio_projector(width: int, language_width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, language_width), nn.GELU(), nn.Linear(language_width, language_width))


def _with_audio(parts: CheckpointParts, path: Path, seed: int) -> CheckpointParts:
    """The parts, with BEATs' tower from its file and a newly initialized projector."""
    tensors = read_audio_tower(path)
    width, language_width = tensors["post_extract_proj.weight"].shape[0], parts.config.language.width
    added: Sources = {name: partial(parts.read, name) for name in parts.names()}
    added |= {audio.PREFIX + name: partial(_same, tensor) for name, tensor in tensors.items()}
    added |= _fresh(partial(_audio_projector, width, language_width), audio.PROJECTOR_PREFIX, seed)
    content = parts.content | {
        "mm_audio_tower": path.name,
        "mm_hidden_size_a": width,
        "hidden_size_a": language_width,
        "mm_projector_a_type": "mlp2x_gelu",
        "tune_mm_mlp_adapter_a": True,
    }
    return CheckpointParts(parts.config, parts.folders, content, added)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def read_audio_tower(path: Path) -> dict[str, Tensor]:
    """Read BEATs' tensors from its published file ({cfg, model}), or from a file with the names of an audio-visual checkpoint.

    Raises: CheckpointMismatch.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointMismatch(f"{path} is missing; --audio-tower needs BEATs' .pt file") from None
    except Exception as error:  # pickle's errors have no common base class
        raise CheckpointMismatch(f"{path} is not a file that has only tensors, so it is not loaded: {error}") from error
    config, tensors = {}, content
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        config, tensors = content.get("cfg", {}), content["model"]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointMismatch(f"{path} has no named tensors; expected BEATs' file: {{'cfg': ..., 'model': ...}}")
    for key, supported in _BEATS.items():
        if key in config and config[key] != supported:
            raise CheckpointMismatch(f"{path}: {key} is {config[key]!r}; only {supported!r} is supported")
    prefixed = {
        name.removeprefix(audio.PREFIX): value for name, value in tensors.items() if name.startswith(audio.PREFIX)
    }
    tensors = prefixed or tensors
    with torch.device("meta"):
        names = AudioTower(AudioConfig(width=16, mlp_width=1, layers=1, heads=1, patch_width=1)).state_dict()
    missing = [name for name in names if "pos_conv" not in name and "relative" not in name and name not in tensors]
    if missing:
        raise CheckpointMismatch(f"{path} lacks {len(missing)} of BEATs' tensors, such as {missing[0]}")
    return tensors
