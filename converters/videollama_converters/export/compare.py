"""Parity check: runs a graph and its PyTorch module on the same inputs."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from videollama_converters.export.graph_specs import example_inputs
from videollama_converters.export.graphs import build_module
from videollama_core.checkpoint.fill import fill
from videollama_core.checkpoint.shards import Sources
from videollama_core.engines.onnx_runtime import OnnxEngine
from videollama_core.engines.specs import Graph
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.errors import ParityFailed

# Largest relative difference allowed, |a - b| / max(1, largest |b|), in float32. A different order of summation changes the
# last bits: tiny models stay below 3e-6, real widths (1024 and more) below 5e-5.
TOLERANCE = 2e-4
# With int8 matrices, which round by design: 0.06 was measured in tiny dense decoders with random weights, 0.26 in a Mixtral,
# where a rounded router score selects another expert. A wrong layout differs by 1 or more.
INT8_TOLERANCE = 0.6
# A graph is compared only if module, session and inputs fit into this share of the memory.
MEMORY_SHARE = 0.4


@dataclass(frozen=True)
class Comparison:
    """How far a graph is from its PyTorch module."""

    graph: str
    difference: float | None  # largest relative difference over all outputs; None: not compared
    tolerance: float
    note: str = ""

    def to_dict(self) -> dict:
        return asdict(self)


def compare(
    graph: Graph, config: ModelConfig, sources: Sources, path: Path, tolerance: float = TOLERANCE
) -> Comparison:
    """Run graph and module on the example inputs, in float32. Raises: ParityFailed beyond `tolerance`."""
    size = sum(file.stat().st_size for file in (path, path.with_name(path.name + ".data")) if file.is_file())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 3 * size > MEMORY_SHARE * memory:
        note = (
            f"not compared: this machine's memory is too small for three copies of the graph ({size / 2**30:.1f} GiB)"
        )
        return Comparison(graph.name, None, tolerance, note)
    inputs = example_inputs(graph, config)
    module = build_module(graph, config).to_empty(device="cpu")
    fill(module, sources, graph.name)
    with torch.inference_mode():
        outputs = module(*inputs)
    expected = outputs if isinstance(outputs, tuple) else (outputs,)
    engine = OnnxEngine(path, graph.inputs_of(config), graph.outputs)
    outputs_by_name = engine.run(
        {name: tensor.numpy() for name, tensor in zip(graph.inputs_of(config), inputs, strict=True)}
    )
    differences = [
        float(np.abs(outputs_by_name[name] - tensor.numpy()).max() / max(1.0, float(tensor.abs().max())))
        for name, tensor in zip(graph.outputs, expected, strict=True)
    ]
    result = Comparison(graph.name, max(differences), tolerance)
    if not result.difference <= tolerance:  # type: ignore[operator]  # NaN fails too
        raise ParityFailed(
            f"{graph.name}: ONNX Runtime and PyTorch differ by {result.difference:.2e}; at most {tolerance:.0e} is allowed. "
            "This is a defect in the conversion: please report it with the checkpoint's config.json"
        )
    return result
