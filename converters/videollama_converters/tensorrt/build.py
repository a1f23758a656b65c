"""Builds TensorRT 10.14 engines, with their side-car files, from ONNX graphs. Runs in the container that will serve.

Engines are strongly typed: the graph's types decide (export/graphs.py), so the same code builds on 10.12 and later, 11 included.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from videollama_converters.export.graph_specs import example_inputs, profiles
from videollama_core.engines.specs import Graph
from videollama_core.engines.tensorrt_encoders import describe_machine
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.errors import ArtifactMismatch

WORKSPACE_BYTES = 8 * 2**30


def build_engine(
    graph: Graph, config: ModelConfig, path: Path, engine: Path, timing_caches: Path, log: Callable[[str], None]
) -> None:
    """Write `engine` and its side-car, then the timing cache, which makes a second build of the same kind fast.

    Args:
        timing_caches: folder with one cache per TensorRT version and compute capability; TensorRT refuses any other.
    Raises: ArtifactMismatch if TensorRT refuses the graph, with TensorRT's reasons.
    """
    machine = describe_machine()
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        reasons = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
        raise ArtifactMismatch(f"TensorRT {machine['tensorrt']} cannot read {path}: {reasons}")
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    settings.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 would be computed with 10 bits of mantissa
    for shapes in profiles(graph, config):
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        settings.add_optimization_profile(profile)
    kept = timing_caches / f"tensorrt-{machine['tensorrt']}-capability-{machine['capability']}.cache"
    cache = settings.create_timing_cache(kept.read_bytes() if kept.is_file() else b"")
    if cache is None or not settings.set_timing_cache(cache, ignore_mismatch=False):
        log(f"{kept} is from another machine or damaged; it is ignored")
    log(f"{graph.name}: building for {machine['gpu']}, TensorRT {machine['tensorrt']}")
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise ArtifactMismatch(f"TensorRT {machine['tensorrt']} cannot build {path}; its log above says which layer")
    engine.parent.mkdir(parents=True, exist_ok=True)
    engine.write_bytes(bytes(plan))
    facts = {
        "machine": machine,
        "onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "profiles": profiles(graph, config),
        "dtypes": tensor_types(path),
    }
    engine.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    used = settings.get_timing_cache()
    if used is not None:  # None if the cache was refused
        timing_caches.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(bytes(used.serialize()))


def tensor_types(path: Path) -> dict[str, str]:
    """numpy names of the types of a graph's inputs and outputs, which its engine keeps."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {
        value.name: str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in (*graph.input, *graph.output)
    }


def compare_engine(graph: Graph, config: ModelConfig, module: Any, run: Callable[..., Any]) -> float:
    """Cosine similarity of an engine's output and the PyTorch module's, on the example inputs.

    Args:
        run: runs the engine: input torch tensors on the CPU -> output as a float32 torch tensor.
    """
    import torch

    inputs = example_inputs(graph, config)
    with torch.inference_mode():
        expected = module(*inputs).float().flatten()
    output = run(*inputs).float().flatten()
    return float(torch.nn.functional.cosine_similarity(output, expected, dim=0))
