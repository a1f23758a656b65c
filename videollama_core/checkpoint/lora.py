"""LoRA adapters in peft's format, merged into the language model's weights as these are read."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from videollama_core.checkpoint.files import find_file, named, read_json, shown
from videollama_core.checkpoint.shards import Sources
from videollama_core.checkpoint.weight_files import DTYPES
from videollama_core.model.value_rules import Rule
from videollama_core.protocol.errors import CheckpointMismatch

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
RANK, ALPHA = Rule("r", int, 1, 4096), Rule("lora_alpha", float, 1e-6, 1e6)
_WRAPPED, _INSIDE = "base_model.model.", ".base_layer."  # peft's prefix of every name, and infix of adapted layers


def adapter_file(folder: Path) -> str:
    """Name of the adapters' file in the folder. Raises: CheckpointMismatch if there is none."""
    name = next((name for name in ADAPTER_FILES if find_file(folder, name)), None)
    if name is None:
        raise CheckpointMismatch(f"{folder} holds adapter_config.json, but neither {' nor '.join(ADAPTER_FILES)}")
    return name


def renamed(tensors: Sources) -> Sources:
    """Tensors of `non_lora_trainables.bin` under their published names, without the prefixes of the training wrappers.

    Tensors inside an adapted layer (trained biases) are also stored with the adapters, and read from there.
    """
    names = {name.removeprefix("base_model."): read for name, read in tensors.items() if _INSIDE not in name}
    if any(name.startswith("model.model.") for name in names):
        names = {name.removeprefix("model."): read for name, read in names.items()}
    return names


def merge_adapters(tensors: Sources, adapters: Sources, folder: Path) -> None:
    """Replace each adapted weight by W + scale * B A in float32, and each trained bias; computed when it is read.

    Args:
        tensors: of the whole model by published names; changed in place.
        adapters: as stored in `folder`.
    Raises: CheckpointMismatch, also from the changed readers.
    """
    scale, rank, biases = _settings(read_json(folder / "adapter_config.json"), folder)
    alone = {name for name in adapters if ".lora_A." in name and name.replace(".lora_A.", ".lora_B.") not in adapters}
    if alone:
        raise CheckpointMismatch(f"{folder} holds {named(min(alone))}, but has no lora_B for it")
    for stored, read in adapters.items():
        name = stored.removeprefix(_WRAPPED)
        if ".lora_A." in stored:
            continue
        if ".lora_B." in stored:
            target = name.split(".lora_B.")[0] + ".weight"
            read_a = adapters.get(stored.replace(".lora_B.", ".lora_A."))
            if read_a is None or target not in tensors:
                raise CheckpointMismatch(
                    f"{folder} changes {named(target)}, "
                    + ("but has no lora_A for it" if read_a is None else "which the base model does not have")
                )
            tensors[target] = partial(_merged, tensors[target], read_a, read, scale, rank, target)
            continue
        target = name.replace(_INSIDE, ".")
        if biases == "none" or not target.endswith("bias") or target not in tensors:
            raise CheckpointMismatch(f"{folder} holds {named(stored)}, which is not part of LoRA with bias {biases!r}")
        tensors[target] = read


def _settings(config: dict[str, Any], folder: Path) -> tuple[float, int, str]:
    """Scale, rank, and which biases were trained. Raises: CheckpointMismatch for adapters other than plain LoRA."""
    rank: Any
    alpha: Any
    rank, alpha, kind = config.get("r"), config.get("lora_alpha"), config.get("peft_type", "LORA")
    if kind != "LORA" or not RANK.allows(rank) or not ALPHA.allows(alpha):
        raise CheckpointMismatch(
            f"{folder}/adapter_config.json: {shown(kind)} with r {shown(rank)} and lora_alpha {shown(alpha)}; expected "
            f"LoRA with r {RANK.expected} and lora_alpha {ALPHA.expected}"
        )
    for key in ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise CheckpointMismatch(
                f"{folder}/adapter_config.json: {key} is {shown(config[key])}; only plain LoRA is merged"
            )
    biases = str(config.get("bias") or "none")
    if biases not in ("none", "all", "lora_only"):
        raise CheckpointMismatch(
            f"{folder}/adapter_config.json: bias is {shown(biases)}; expected none, all or lora_only"
        )
    return (alpha / rank**0.5 if config.get("use_rslora") else alpha / rank), rank, biases


def _merged(
    read: Callable[[], Tensor],
    read_a: Callable[[], Tensor],
    read_b: Callable[[], Tensor],
    scale: float,
    rank: int,
    name: str,
) -> Tensor:
    weight, a, b = read(), read_a(), read_b()
    if len(b.shape) != 2 or len(a.shape) != 2 or (b.shape[0], a.shape[1]) != weight.shape or a.shape[0] != b.shape[1]:
        raise CheckpointMismatch(
            f"the adapter of {name} is {list(b.shape)} x {list(a.shape)}, but the weight is {list(weight.shape)}"
        )
    if a.shape[0] != rank:
        raise CheckpointMismatch(f"the adapter of {name} has rank {a.shape[0]}, but adapter_config.json says {rank}")
    for matrix in (a, b):
        if matrix.dtype not in DTYPES:
            raise CheckpointMismatch(f"the adapter of {name} is {matrix.dtype}; expected floating point")
    return weight.float() + scale * (b.float() @ a.float())
