"""Fill a module with a checkpoint's tensors, and prove that they fit: none missing, none left over, none damaged."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from videollama_core.checkpoint.files import named
from videollama_core.checkpoint.shards import Sources
from videollama_core.checkpoint.weight_files import DTYPES
from videollama_core.model.decoder import Decoder
from videollama_core.protocol.errors import CheckpointMismatch


def is_tied(module: nn.Module) -> bool:
    return isinstance(module, Decoder) and module.config.tied


def check_names(expected: Iterable[str], found: Iterable[str], tied: bool, part: str) -> None:
    expected, found = set(expected), set(found)
    if tied:
        expected.discard("lm_head.weight")
        found.discard("lm_head.weight")
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        raise CheckpointMismatch(
            f"the {part} lacks {len(missing)} tensors: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
        )
    if extra:
        raise CheckpointMismatch(
            f"the checkpoint holds {len(extra)} tensors that no part of the model uses: {', '.join(map(named, extra[:3]))}"
            f"{', ...' * (len(extra) > 3)}"
        )


def check_tensor(name: str, found: Tensor, wanted: Tensor, part: str) -> None:
    if found.shape != wanted.shape:
        raise CheckpointMismatch(f"{part}: {name} is {list(found.shape)}; the config wants {list(wanted.shape)}")
    if found.dtype not in DTYPES:
        raise CheckpointMismatch(f"{part}: {name} is {found.dtype}; floating point of 16 bits or more was wanted")
    if not torch.isfinite(found).all():
        raise CheckpointMismatch(f"{part}: {name} holds values that are not finite: the file is damaged")


def fill(module: nn.Module, sources: Sources, part: str) -> Any:
    """Copy stored tensors into the module, as float32. Raises: CheckpointMismatch if one is missing, left over or misshapen."""
    parameters = module.state_dict()
    check_names(parameters, sources, is_tied(module), part)
    for name, read in sources.items():
        tensor = read()
        check_tensor(name, tensor, parameters[name], part)
        parameters[name].copy_(tensor)
    if isinstance(module, Decoder) and module.config.tied:
        module.lm_head.weight = module.model.embed_tokens.weight
    return module.eval().requires_grad_(False)
