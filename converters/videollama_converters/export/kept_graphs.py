"""Exported graphs, kept on the disk for other processes where VL2_GRAPH_CACHE names a folder.

Exporting is almost all of a small model's conversion, and what comes out is decided by the module's configuration alone. The
tests convert a few families many times, in several processes.
"""

import hashlib
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch

from videollama_converters.steps.code_hash import code_hash

VARIABLE = "VL2_GRAPH_CACHE"
_EXPORTERS = ("torch", "onnx-ir", "onnxscript")  # a graph is what these versions of them write
_NOWHERE = "values-are-elsewhere"


def kept_or_made(key: str, module: str, make: Callable[[], ir.Model]) -> ir.Model:
    """The graph of a key, whose parameters have no values.

    Args:
        module: whose code, with all that it imports, decides what `make` makes.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return make()
    words = "\n".join([key, code_hash(module), *map(version, _EXPORTERS)])
    path = Path(folder) / f"{hashlib.sha256(words.encode()).hexdigest()}.onnx"
    if path.is_file():
        return _read(path)
    model = make()
    _write(model, path)
    return model


def _write(model: ir.Model, path: Path) -> None:
    """Beside, and moved when whole: another process may look for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    copy, beside = model.clone(), path.with_suffix(f".{os.getpid()}")
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and isinstance(tensor.raw, torch.Tensor) and tensor.raw.is_meta:
            value.const_value = ir.ExternalTensor(
                _NOWHERE, 0, 0, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or ""
            )
    ir.save(copy, beside, format="protobuf")
    beside.replace(path)


def _read(path: Path) -> ir.Model:
    model = ir.load(path, format="protobuf")
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = None
    return model
