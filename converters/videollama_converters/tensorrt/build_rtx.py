"""Builds TensorRT-RTX engines from ONNX graphs on any machine: NVIDIA's parser and builder need neither GPU nor driver.

The extra `tensorrt-rtx` installs the package. Its parser is onnx-tensorrt's: a graph that it refuses, TensorRT 10 refuses too.
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from videollama_converters.engine_options import FP8_CAPABILITY
from videollama_converters.export.graph_specs import profiles
from videollama_converters.steps.bundle_writer import sha256
from videollama_converters.tensorrt.build import tensor_types
from videollama_core.engines.specs import Graph
from videollama_core.engines.tensorrt_rtx import rtx_logger, rtx_version
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.errors import ArtifactMismatch

# Compute capabilities of one engine: A100, then RTX and data-center cards of Ampere, Ada and Blackwell. The package supports neither
# Hopper (9.0) nor data-center Blackwell (10.0); Turing (7.5) needs a separate engine.
TARGETS = (8.0, 8.6, 8.9, 12.0)
FP8_TARGETS = tuple(target for target in TARGETS if target >= FP8_CAPABILITY)


def is_installed() -> bool:
    return find_spec("tensorrt_rtx") is not None


def parse(path: Path) -> None:
    """Check a graph with NVIDIA's parser. Raises: ArtifactMismatch with the parser's reasons."""
    _read(path)


def build(
    graph: Graph,
    config: ModelConfig,
    path: Path,
    targets: tuple[float, ...] = TARGETS,
    log: Callable[[str], None] = lambda line: None,
) -> bytes:
    """A graph's serialized engine, with the same optimization profiles as TensorRT's.

    Args:
        targets: compute capabilities that it can run on.
        log: called with each line of the builder's log, verbose ones included.
    Raises: ArtifactMismatch with the builder's errors.
    """
    import tensorrt_rtx as trt

    builder, network, parser = _read(path)
    settings = settings_of(builder, graph, config, targets)
    messages = rtx_logger()
    messages.start(log)
    plan = builder.build_serialized_network(network, settings)
    del parser  # owns the weights until here
    if plan is None:
        raise ArtifactMismatch(f"TensorRT-RTX {trt.__version__} cannot build {path}: {'; '.join(messages.errors)}")
    return bytes(plan)


def settings_of(builder: Any, graph: Graph, config: ModelConfig, targets: tuple[float, ...]) -> Any:
    """The builder configuration of a graph's engine."""
    import tensorrt_rtx as trt

    settings = builder.create_builder_config()
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    settings.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 would be computed with 10 bits of mantissa
    settings.num_compute_capabilities = len(targets)
    for place, target in enumerate(targets):
        settings.set_compute_capability(getattr(trt.ComputeCapability, f"SM{round(10 * target)}"), place)
    for shapes in profiles(graph, config):
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        settings.add_optimization_profile(profile)
    return settings


def write_engine(graph: Graph, config: ModelConfig, path: Path, engine: Path, is_fp8: bool = False) -> None:
    """Write `engine` and its side-car. Raises: ArtifactMismatch, as `build` does."""
    targets = FP8_TARGETS if is_fp8 else TARGETS
    plan = build(graph, config, path, targets)
    engine.parent.mkdir(parents=True, exist_ok=True)
    engine.write_bytes(plan)
    facts = {
        "tensorrt_rtx": rtx_version(),
        "targets": targets,
        "onnx_sha256": sha256(path),
        "profiles": profiles(graph, config),
        "dtypes": tensor_types(path),
    }
    engine.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _read(path: Path) -> tuple[Any, Any, Any]:
    """Builder, network and parser."""
    import tensorrt_rtx as trt

    rtx_logger().start()
    builder = trt.Builder(rtx_logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, rtx_logger())
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(place) for place in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        raise ArtifactMismatch(f"the parser of TensorRT-RTX {trt.__version__} refuses {path}: {reasons}")
    return builder, network, parser
