"""Checks that TensorRT accepts the graphs of a checkpoint, before the weights are read and on any machine."""

import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from videollama_converters.engine_options import EngineOptions, encoder_dtype
from videollama_converters.export.graph_specs import ENGINE_GRAPHS
from videollama_converters.export.graphs import build_module, trace_graph, write_without_values
from videollama_converters.tensorrt import build_rtx
from videollama_converters.tensorrt.fp8 import quantize, unit_scales
from videollama_converters.tensorrt.operators import check_graph
from videollama_core.engines.specs import VISION_ENCODER, Graph, graphs_of
from videollama_core.engines.torch_device import pick_dtype
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.errors import ArtifactMismatch

logger = logging.getLogger(__name__)


def check_graphs(config: ModelConfig, options: EngineOptions) -> None:
    """Check against the operator table, and with NVIDIA's parser if it is installed. Raises: ArtifactMismatch."""
    config = _one_layer_each(config)
    has_parser = build_rtx.is_installed()
    if not has_parser:
        logger.info(
            "NVIDIA's parser is not installed (extra tensorrt-rtx): graphs are checked by the operator table only"
        )
    with TemporaryDirectory(prefix="vl2-graphs-") as folder:
        for graph in ENGINE_GRAPHS:
            if graph in graphs_of(config):
                path = Path(folder) / f"{graph.name}.onnx"
                _write(graph, config, options, path)
                refuse_violations(path)
                if has_parser:
                    build_rtx.parse(path)


def refuse_violations(path: Path) -> None:
    """Raises: ArtifactMismatch if a graph violates the operator table."""
    violations = check_graph(path)
    if violations:
        raise ArtifactMismatch("TensorRT would not accept the graph: " + "; ".join(map(str, violations[:3])))


def _one_layer_each(config: ModelConfig) -> ModelConfig:
    """Reduce the towers to one layer each: all layers share one code, so checking one is enough and many seconds faster."""
    audio = replace(config.audio, layers=1) if config.audio else None
    return replace(config, vision=replace(config.vision, select_layer=1), audio=audio)


def _write(graph: Graph, config: ModelConfig, options: EngineOptions, path: Path) -> None:
    module, model = (
        build_module(graph, config),
        trace_graph(graph, config, pick_dtype(encoder_dtype(graph, options.dtype))),
    )
    if options.fp8_media and graph is VISION_ENCODER:
        quantize(model, unit_scales(module))
    write_without_values(model, module.state_dict().keys(), path)
