"""Loads weights one tensor at a time, directly to their device.

No process holds a second copy in main memory; processes on the same machine share the files in the page cache. With DeepSpeed's
ZeRO 3 only the first process reads, and each keeps its share.
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
    """Device and type of loaded weights."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    shared: bool = False  # weights are sharded over the processes (ZeRO 3, FSDP)


def load(part: Module, loading: Loading) -> Any:
    """A module with its stored weights. Raises: CheckpointMismatch."""
    if is_deepspeed_zero3_enabled():
        return _load_shared(part)
    with torch.device("meta"):
        module = part.make()
    module = module.to(loading.dtype).to_empty(device=loading.device)
    return fill(module, part.sources, part.name)


def _load_shared(part: Module) -> nn.Module:
    """Each process holds a share of every tensor; only the first process reads."""
    import deepspeed  # an optional package

    if torch.distributed.is_initialized():  # before DeepSpeed reads its config, which counts the processes
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())
    with deepspeed.zero.Init(config_dict_or_path=deepspeed_config()):  # the config also sets the weights' type
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
