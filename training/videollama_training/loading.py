"""Weights into memory: read one tensor at a time, straight to where it stays.

A process holds no second copy, in its device's memory alone; what several processes of a machine read is one and the same
file in the page cache. Under DeepSpeed's ZeRO 3 only the first process reads, and each keeps its share.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_config

from videollama_core.checkpoint.fill import check_names, check_tensor, fill, is_tied
from videollama_core.checkpoint.parts import Module


@dataclass(frozen=True)
class Loading:
    """Where weights go, and as what."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    shared: bool = False  # each process will hold a share of every weight (ZeRO 3, FSDP)


def load(part: Module, loading: Loading) -> Any:
    """The part as a module with its stored weights. Raises: CheckpointMismatch."""
    if is_deepspeed_zero3_enabled():
        return _load_shared(part)
    with torch.device("meta"):
        module = part.make()
    module = module.to(loading.dtype).to_empty(device=loading.device)
    return fill(module, part.sources, part.name)


def _load_shared(part: Module) -> nn.Module:
    """Each process holds a share of every tensor; the first one reads it."""
    import deepspeed  # an optional package

    if torch.distributed.is_initialized():  # DeepSpeed counts the processes when it reads its config
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())
    with deepspeed.zero.Init(config_dict_or_path=deepspeed_config()):  # which says the type of weights
        module = part.make()
    parameters = dict(module.named_parameters())
    check_names(parameters, part.sources, is_tied(module), part.name)
    for name, parameter in parameters.items():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if deepspeed.comm.get_rank() == 0:
                tensor = part.sources[name]()
                check_tensor(name, tensor, parameter, part.name)
                parameter.copy_(tensor)
    return module.eval().requires_grad_(False)
