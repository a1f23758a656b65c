"""Low-rank adapters for the language model, with the library peft."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from videollama_core.model.decoder import Decoder
from videollama_core.protocol.errors import InvalidRequest
from videollama_training.options import TrainingOptions


def add_adapters(decoder: Decoder, options: TrainingOptions) -> nn.Module:
    """Add LoRA to every Linear except `lm_head`, as the reference does; for qlora with double-quantized NF4 weights."""
    if options.tune == "qlora":
        _quantize(decoder, torch.bfloat16 if options.bf16 else torch.float32)
    leaves = {
        name.rsplit(".", 1)[-1]
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=sorted(leaves),
        bias=options.lora_bias,  # type: ignore[arg-type]
        task_type=None,
    )
    return get_peft_model(decoder, config)


def _quantize(decoder: Decoder, compute_dtype: torch.dtype) -> None:
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise InvalidRequest("QLoRA needs the package bitsandbytes: pip install bitsandbytes") from error
    for name, module in list(decoder.named_modules()):
        for leaf, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and (name, leaf) != ("", "lm_head"):
                quantized = Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=compute_dtype,
                    quant_type="nf4",
                )
                quantized.weight = Params4bit(
                    child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                if child.bias is not None:
                    quantized.bias = nn.Parameter(child.bias.data, requires_grad=False)
                setattr(module, leaf, quantized)
