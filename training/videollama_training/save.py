"""Saves the trained parameters as a checkpoint folder in a published layout.

`full` and `audio` write a whole (chat) checkpoint; `connector` a Base folder with `mm_projector.bin`; `lora` and `qlora` adapters
with `non_lora_trainables.bin`. A Base folder and adapters name the folders of their base model and tower.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from videollama_core.checkpoint.layout import CONNECTOR_FILE, NON_LORA_FILE
from videollama_core.checkpoint.lora import ADAPTER_FILES
from videollama_core.checkpoint.parts import BIAS_TABLE, CheckpointParts, tap_lengths
from videollama_core.checkpoint.shards import write_shards
from videollama_core.checkpoint.tokenizer_files import copy_tokenizer
from videollama_core.model import audio, connector, vision

if TYPE_CHECKING:
    from peft import LoraConfig

ARCHITECTURES = {
    "mistral": "Videollama2MistralForCausalLM",
    "mixtral": "Videollama2MixtralForCausalLM",
    "qwen2": "Videollama2Qwen2ForCausalLM",
}
_WRAPPED = "base_model.model."  # peft's prefix of parameter names
_DTYPE = torch.bfloat16  # of every published checkpoint


def save_checkpoint(
    state: dict[str, Tensor],
    parts: CheckpointParts,
    folder: Path,
    tune: str,
    tune_tower: bool,
    adapters: "LoraConfig | None" = None,
) -> None:
    """Write the layout for `tune` to a temporary folder, then rename it: a killed run leaves nothing that looks complete.

    Args:
        state: `TrainableModel.state_dict()`, gathered from all devices.
        adapters: peft's configuration of the adapters, for lora and qlora.
    """
    partial_folder = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    trained = published_names(state)
    config = dict(parts.content)
    if tune in ("full", "audio"):
        _write_chat(trained, parts, config, partial_folder)
    else:
        _write_beside_base(trained, parts, config, partial_folder, tune_tower, adapters)
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.rename(folder)


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state's tensors as in published checkpoints; adapters keep peft's names."""
    prefixes = {
        "vision.": vision.PREFIX,
        "connector.": connector.PREFIX,
        "audio.tower.": audio.PREFIX,
        "audio.projector.": audio.PROJECTOR_PREFIX,
        "decoder.": "",
    }
    named = {}
    for name, tensor in state.items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        named[prefixes[prefix] + name.removeprefix(prefix)] = tensor
    return named | _audio_tower_names(named)


def _audio_tower_names(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that a published audio tower stores differently: a convolution as direction and length, and one table per layer."""
    encoder = audio.PREFIX + "encoder."
    conv = named.get(encoder + "pos_conv.0.weight")
    if conv is None:
        return {}
    table = named[encoder + "relative_attention_bias.weight"]
    layers = {name.split(".layers.")[1].split(".")[0] for name in named if name.startswith(encoder + "layers.")}
    return {
        encoder + "pos_conv.0.weight_v": conv,
        encoder + "pos_conv.0.weight_g": tap_lengths(conv),
        **{f"{encoder}layers.{layer}.{BIAS_TABLE}": table for layer in layers},
    }


def _write_chat(trained: dict[str, Tensor], parts: CheckpointParts, config: dict[str, Any], folder: Path) -> None:
    """Write every tensor of the source in its order: the trained one, or else (for tensors that inference never uses) its own."""
    sources: dict[str, Callable[[], Tensor]] = {}
    for name in parts.names():
        if parts.config.language.tied and name == "lm_head.weight":
            continue
        sources[name] = partial(_stored, trained[name]) if name in trained else partial(_read, parts, name)
    write_shards(sources, folder)
    copy_tokenizer(parts.folders.language, folder)
    tower = parts.folders.tower
    if tower is not None:  # copy the tower's settings into the checkpoint
        inside = Path("towers") / tower.name
        (folder / inside).mkdir(parents=True)
        for name in ("config.json", "preprocessor_config.json"):
            shutil.copyfile(tower / name, folder / inside / name)
        config["mm_vision_tower"] = str(inside)
    config.update(architectures=[ARCHITECTURES[parts.config.language.family]], tune_mm_mlp_adapter=False)
    _write_json(folder / "config.json", config)


def _write_beside_base(
    trained: dict[str, Tensor],
    parts: CheckpointParts,
    config: dict[str, Any],
    folder: Path,
    tune_tower: bool,
    adapters: "LoraConfig | None",
) -> None:
    config["_name_or_path"] = str(parts.folders.language.resolve())
    if parts.folders.tower is not None:
        config["mm_vision_tower"] = str(parts.folders.tower.resolve())
    prefixes = (connector.PREFIX, vision.PREFIX) if tune_tower else (connector.PREFIX,)
    others = {name: _stored(tensor) for name, tensor in trained.items() if name.startswith(prefixes)}
    with_biases = adapters is not None and adapters.bias != "none"
    if adapters is None:
        torch.save(others, folder / CONNECTOR_FILE)
        config["tune_mm_mlp_adapter"] = True
    else:
        torch.save({_WRAPPED + name: tensor for name, tensor in others.items()}, folder / NON_LORA_FILE)
        matrices = {
            name.replace(".default.", "."): _stored(tensor).contiguous()
            for name, tensor in trained.items()
            if ".lora_A." in name or ".lora_B." in name or (with_biases and name.endswith(".base_layer.bias"))
        }
        save_file(matrices, folder / ADAPTER_FILES[0], metadata={"format": "pt"})
        adapters.base_model_name_or_path = config["_name_or_path"]
        adapters.save_pretrained(str(folder))
        config["tune_mm_mlp_adapter"] = False
    _write_json(folder / "config.json", config)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", _DTYPE)


def _read(parts: CheckpointParts, name: str) -> Tensor:
    return parts.read(name).to(_DTYPE)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
