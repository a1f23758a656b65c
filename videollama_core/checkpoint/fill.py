"""Fill a module with a checkpoint's tensors, and check that they match: none missing, none left over, none damaged."""

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
    """Whether the output head shares its weight with the embedding."""
    return isinstance(module, Decoder) and module.config.tied


def check_names(expected: Iterable[str], stored: Iterable[str], tied: bool, part: str) -> None:
    """Raises: CheckpointMismatch if a tensor of the part is missing or left over."""
    expected, stored = set(expected), set(stored)
    if tied:
        expected.discard("lm_head.weight")
        stored.discard("lm_head.weight")
    missing, extra = sorted(expected - stored), sorted(stored - expected)
    if missing:
        raise CheckpointMismatch(
            f"the {part} lacks {len(missing)} tensors: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
        )
    if extra:
        raise CheckpointMismatch(
            f"the checkpoint holds {len(extra)} tensors that no part of the model uses: {', '.join(map(named, extra[:3]))}"
            f"{', ...' * (len(extra) > 3)}"
        )


def check_tensor(name: str, stored: Tensor, expected: Tensor, part: str) -> None:
    """Raises: CheckpointMismatch if the stored tensor has another shape, is not floating point, or is not finite."""
    if stored.shape != expected.shape:
        raise CheckpointMismatch(f"{part}: {name} is {list(stored.shape)}; the config expects {list(expected.shape)}")
    if stored.dtype not in DTYPES:
        raise CheckpointMismatch(f"{part}: {name} is {stored.dtype}; expected floating point of 16 bits or more")
    if not torch.isfinite(stored).all():
        raise CheckpointMismatch(f"{part}: {name} contains values that are not finite: the file is damaged")


def fill(module: nn.Module, sources: Sources, part: str) -> Any:
    """Copy stored tensors into the module, as float32, and freeze it.

    Raises: CheckpointMismatch if a tensor is missing, left over, or does not match.
    """
    parameters = module.state_dict()
    check_names(parameters, sources, is_tied(module), part)
    for name, read in sources.items():
        tensor = read()
        check_tensor(name, tensor, parameters[name], part)
        parameters[name].copy_(tensor)
    if isinstance(module, Decoder) and module.config.tied:
        module.lm_head.weight = module.model.embed_tokens.weight
    return module.eval().requires_grad_(False)
