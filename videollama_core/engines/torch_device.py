"""The device and dtype in which PyTorch computes, and the handover between CUDA streams."""

import torch

from videollama_core.protocol.errors import ArtifactMismatch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device() -> torch.device:
    """The GPU that this process may use, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def pick_dtype(name: str) -> torch.dtype:
    """The torch dtype of a manifest's dtype. Raises: ArtifactMismatch for an unknown name."""
    if name not in DTYPES:
        raise ArtifactMismatch(f"the manifest's dtype is {name!r}; PyTorch computes in {', '.join(DTYPES)}")
    return DTYPES[name]


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16; otherwise PyTorch emulates it, several times slower than float32."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def hand_over(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Make a tensor that was computed on `stream` usable on the caller's stream, without waiting on the host."""
    caller = torch.cuda.current_stream()
    caller.wait_stream(stream)
    tensor.record_stream(caller)
    return tensor


def take_over(stream: torch.cuda.Stream, *tensors: torch.Tensor) -> None:
    """The reverse: let `stream` continue once the work queued on the caller's stream, which made the tensors, is done."""
    stream.wait_stream(torch.cuda.current_stream())
    for tensor in tensors:
        tensor.record_stream(stream)
