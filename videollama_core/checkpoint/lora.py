"""Adapters as peft writes them: merged into the language model's weights while these are read."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from videollama_core.checkpoint.read_config import read_json
from videollama_core.checkpoint.shards import Sources
from videollama_core.protocol.errors import CheckpointMismatch

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_WRAPPED, _INSIDE = "base_model.model.", ".base_layer."  # what peft puts before a name, and into that of what it adapts


def adapter_file(folder: Path) -> str:
    """Raises: CheckpointMismatch."""
    name = next((name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if name is None:
        raise CheckpointMismatch(f"{folder} holds adapter_config.json, but neither {' nor '.join(ADAPTER_FILES)}")
    return name


def renamed(tensors: Sources) -> Sources:
    """Names of `non_lora_trainables.bin` as published: without the wrappers that training put around the model.

    What lies inside an adapted layer (biases that were trained too) is stored with the adapters as well, and read there.
    """
    names = {name.removeprefix("base_model."): read for name, read in tensors.items() if _INSIDE not in name}
    if any(name.startswith("model.model.") for name in names):
        names = {name.removeprefix("model."): read for name, read in names.items()}
    return names


def merge_adapters(tensors: Sources, adapters: Sources, folder: Path) -> None:
    """W + scale * B A in float32, for each weight that an adapter names, and each bias that was trained, when asked for.

    Args:
        tensors: of the whole model by published names; changed in place.
        adapters: as stored in `folder`.
    Raises: CheckpointMismatch.
    """
    scale, biases = _settings(read_json(folder / "adapter_config.json"), folder)
    for stored, read in adapters.items():
        name = stored.removeprefix(_WRAPPED)
        if ".lora_A." in stored:
            continue
        if ".lora_B." in stored:
            target = name.split(".lora_B.")[0] + ".weight"
            read_a = adapters.get(stored.replace(".lora_B.", ".lora_A."))
            if read_a is None or target not in tensors:
                raise CheckpointMismatch(
                    f"{folder} changes {target}, "
                    + ("but has no lora_A for it" if read_a is None else "which the base model does not have")
                )
            tensors[target] = partial(_merged, tensors[target], read_a, read, scale, target)
            continue
        target = name.replace(_INSIDE, ".")
        if biases == "none" or not target.endswith("bias") or target not in tensors:
            raise CheckpointMismatch(f"{folder} holds {stored}, which is no part of LoRA with bias {biases!r}")
        tensors[target] = read


def _settings(config: dict[str, Any], folder: Path) -> tuple[float, str]:
    """Scale, and which biases were trained. Raises: CheckpointMismatch for a kind of adapter that is not plain LoRA."""
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type", "LORA") != "LORA" or not rank or alpha is None:
        raise CheckpointMismatch(f"{folder}/adapter_config.json: {config.get('peft_type')} with r {rank}; wanted LoRA")
    for key in ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise CheckpointMismatch(f"{folder}/adapter_config.json: {key} is {config[key]}; only plain LoRA is merged")
    biases = config.get("bias") or "none"
    if biases not in ("none", "all", "lora_only"):
        raise CheckpointMismatch(f"{folder}/adapter_config.json: bias is {biases!r}; wanted none, all or lora_only")
    return (alpha / rank**0.5 if config.get("use_rslora") else alpha / rank), biases


def _merged(
    read: Callable[[], Tensor], read_a: Callable[[], Tensor], read_b: Callable[[], Tensor], scale: float, name: str
) -> Tensor:
    weight, a, b = read().float(), read_a().float(), read_b().float()
    if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
        raise CheckpointMismatch(
            f"the adapter of {name} is {list(b.shape)} x {list(a.shape)}, but the weight is {list(weight.shape)}"
        )
    return weight + scale * (b @ a)
