"""Low-rank adapters around the language model, on the library peft."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from videollama_core.model.decoder import Decoder
from videollama_core.protocol.errors import InvalidRequest


def add_adapters(decoder: Decoder, rank: int, alpha: int, dropout: float, four_bit: bool) -> nn.Module:
    """LoRA on every Linear but `lm_head`, as the reference does; `four_bit` is QLoRA's NF4, double quantised."""
    if four_bit:
        _quantise(decoder)
    leaves = {
        name.rsplit(".", 1)[-1]
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(leaves),
        bias="none",
        task_type=None,
    )
    return get_peft_model(decoder, config)


def _quantise(decoder: Decoder) -> None:
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise InvalidRequest("QLoRA needs the package bitsandbytes: pip install bitsandbytes") from error
    for name, module in list(decoder.named_modules()):
        for leaf, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and (name, leaf) != ("", "lm_head"):
                made = Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=torch.float32,
                    quant_type="nf4",
                )
                made.weight = Params4bit(
                    child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                if child.bias is not None:
                    made.bias = nn.Parameter(child.bias.data, requires_grad=False)
                setattr(module, leaf, made)
