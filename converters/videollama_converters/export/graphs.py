"""Exports PyTorch modules as ONNX graphs with external weights.

A module is exported on the meta device, where it has shapes but no values; its tensors are then read from the
checkpoint one at a time while the file is written. Peak memory is one tensor, regardless of the model's size.
"""

import gc
import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from torch.nn import functional

from videollama_converters.export.cut_modules import CUT_AUDIO_ENCODER, CUT_CONNECTOR, CUT_DECODER, CUT_VISION_ENCODER
from videollama_converters.export.graph_specs import SPECS, example_inputs, graph_sources
from videollama_converters.export.int8_weights import store_in_int8
from videollama_converters.export.kept_graphs import kept_or_made
from videollama_converters.export.repeated_layers import (
    repeat_connector_block,
    repeat_decoder_layer,
    repeat_tower_layer,
)
from videollama_converters.export.tidy_graph import tidy
from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.checkpoint.shards import Sources
from videollama_core.engines.bundle import graph_path
from videollama_core.engines.specs import DECODER, VISION_ENCODER, Graph
from videollama_core.model.config import ModelConfig

_traced: dict[object, ir.Model] = {}  # as exported; see trace_graph
_REPEAT = {
    CUT_DECODER: repeat_decoder_layer,
    CUT_VISION_ENCODER: repeat_tower_layer,
    CUT_AUDIO_ENCODER: repeat_tower_layer,
    CUT_CONNECTOR: repeat_connector_block,
}
OPSET = 20  # the highest that TensorRT 10 reads, and the first in which Gelu is a single node


class _Float32Norm(nn.LayerNorm):
    """A LayerNorm that computes in float32 inside a graph of lower precision, where its sums of squares would overflow."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def lower(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In place: compute in `dtype`, norms in float32. The engine keeps the types of the graph (strong typing)."""
    for child in module.modules():
        if type(child) is nn.LayerNorm:
            child.__class__ = _Float32Norm
    return module.to(dtype)


def build_module(graph: Graph, config: ModelConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The PyTorch module behind a graph, on the meta device."""
    with torch.device("meta"):
        module = SPECS[graph].module(config).eval()
    return module if dtype is torch.float32 else lower(module, dtype)


def unchanged(model: ir.Model) -> None:
    """An edit that does nothing."""


def float_pixels(model: ir.Model) -> None:
    """Give the vision graph for ONNX Runtime a float32 input; its cast to float32 then changes nothing.

    Noised pixels (contrast.py) are not integers. TensorRT's graph keeps uint8.
    """
    (frames,) = model.graph.inputs
    assert all(node.op_type == "Cast" for node, _ in frames.uses())
    frames.type = ir.TensorType(ir.DataType.FLOAT)  # a new object: copies of a graph share their types


def trace_graph(graph: Graph, config: ModelConfig, dtype: torch.dtype = torch.float32) -> ir.Model:
    """The graph of a module, its parameters without values: a copy that the caller may change.

    Exporting takes almost all the time of a small model's conversion, so each graph is exported once per process: the check
    before a conversion for TensorRT needs the graphs of the conversion, and models of one family share most of theirs.
    compare.py proves that a shared graph is the right one: it runs the graph and the module of each configuration.
    """
    layers = SPECS[graph].layers(config)
    exported = (SPECS[graph].cut if layers else None) or graph
    key = (exported, SPECS[exported].decided_by(config), dtype)
    if key not in _traced:
        kept_key = repr((exported.name, *key[1:]))
        _traced[key] = kept_or_made(kept_key, __name__, lambda: _export(exported, config, dtype))
    model = _traced[key].clone()
    if exported in _REPEAT:
        _REPEAT[exported](model, layers)
    tidy(model)
    return model


def _export(graph: Graph, config: ModelConfig, dtype: torch.dtype) -> ir.Model:
    module = build_module(graph, config, dtype)
    meta_inputs = tuple(tensor.to("meta") for tensor in example_inputs(graph, config, dtype=dtype))
    with warnings.catch_warnings(), _quiet("torch.onnx"), _without_garbage_collection():
        warnings.simplefilter("ignore")  # the exporter's notes on its own internals
        program = torch.onnx.export(
            module,
            meta_inputs,
            dynamo=True,
            dynamic_shapes=tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in SPECS[graph].dynamic_axes),
            input_names=list(graph.inputs_of(config)),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(
        program.model
    )  # the exporter's notes, with paths of our sources: nine tenths of the file
    return program.model


def export_graph(
    graph: Graph,
    config: ModelConfig,
    sources: Sources,
    path: Path,
    tick: Callable[[], None],
    dtype: torch.dtype = torch.float32,
    edit: Callable[[ir.Model], None] = unchanged,
) -> None:
    """Write `path` and `path`.data.

    Args:
        sources: reads each of the module's parameters.
        tick: called for each tensor written.
        edit: changes the graph in place before it is written.
    """
    model = trace_graph(graph, config, dtype)
    edit(model)
    for name, value in model.graph.initializers.items():
        assert value.shape is not None and value.dtype is not None
        if name in sources:
            value.const_value = _lazy(name, value, sources[name], tick, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=path.name + ".data")
    onnx.checker.check_model(str(path))


def export_for_runtime(
    graph: Graph, parts: CheckpointParts, tick: Callable[[], None], in_int8: bool, folder: Path
) -> None:
    """Write a graph for ONNX Runtime to its path below `folder`, its matrices in int8 if `in_int8`."""
    sources = graph_sources(graph, parts)
    if parts.config.language.tied and graph is DECODER:
        sources["lm_head.weight"] = sources["model.embed_tokens.weight"]
    edit = float_pixels if graph is VISION_ENCODER else unchanged
    if in_int8:
        edit = partial(store_in_int8, sources=sources, tick=tick)
    export_graph(graph, parts.config, sources, folder / graph_path(graph.name), tick, edit=edit)


def write_without_values(model: ir.Model, parameters: Collection[str], path: Path) -> None:
    """Write a traced graph whose parameters are holes in a sparse file: enough for a parser, without using disk space."""
    data, end = path.name + ".data", 0
    for name, value in model.graph.initializers.items():
        if name in parameters:
            assert value.shape is not None and value.dtype is not None
            size = math.prod(value.shape.numpy()) * value.dtype.bitwidth // 8
            value.const_value = ir.ExternalTensor(
                data, end, size, value.dtype, shape=value.shape, name=name, base_dir=path.parent
            )
            end += size
    with path.with_name(data).open("wb") as file:
        file.truncate(end)
    ir.save(model, path)


def _lazy(
    name: str, value: ir.Value, read: Callable[[], Tensor], tick: Callable[[], None], dtype: torch.dtype
) -> ir.LazyTensor:
    assert value.shape is not None and value.dtype is not None

    def load() -> ir.TensorProtocol:
        tick()
        return TorchTensor(read().to(dtype).contiguous(), name=name)

    return ir.LazyTensor(load, dtype=value.dtype, shape=value.shape, name=name, cache=False)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """The exporter makes objects so fast that a tenth of its time would go into looking for unused ones; they take little memory."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _quiet:
    """A context in which a logger and its children report only errors."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
