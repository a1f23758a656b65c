"""A cache of exported graphs on disk, shared by processes, in the folder that VL2_GRAPH_CACHE names.

Exporting takes almost all the time of a small model's conversion, and its result depends only on the module's configuration.
The tests convert a few families many times, in several processes.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch

from videollama_converters.steps.code_hash import code_hash

VARIABLE = "VL2_GRAPH_CACHE"
_EXPORTERS = ("torch", "onnx-ir", "onnxscript")  # their versions decide what a graph looks like
_NOWHERE = "values-are-elsewhere"


def kept_or_made(key: str, module: str, make: Callable[[], ir.Model]) -> ir.Model:
    """The graph of `key`, whose parameters have no values: from the cache, or made and stored there.

    Args:
        module: name of the module whose code, with everything it imports, decides what `make` returns.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return make()
    identity = "\n".join([key, code_hash(module), *map(version, _EXPORTERS)])
    path = Path(folder) / f"{hashlib.sha256(identity.encode()).hexdigest()}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that need the same graph export it once
        if path.is_file():
            return _read(path)
        model = make()
        _write(model, path)
        return model


def _write(model: ir.Model, path: Path) -> None:
    """Write to a temporary file and rename it when complete: another process may read the cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    copy, temporary = model.clone(), path.with_suffix(f".{os.getpid()}")
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and isinstance(tensor.raw, torch.Tensor) and tensor.raw.is_meta:
            value.const_value = ir.ExternalTensor(
                _NOWHERE, 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or ""
            )
    ir.save(copy, temporary, format="protobuf")
    temporary.replace(path)


def _read(path: Path) -> ir.Model:
    model = ir.load(path, format="protobuf")
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = None
    return model
