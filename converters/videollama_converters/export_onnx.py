"""PyTorch modules -> ONNX graphs with external weights.

A module is exported on the meta device, where it has shapes and no values; its tensors are then read from the
checkpoint one at a time while the file is written. Peak memory is one tensor, whatever the model's size.
"""

import logging
import math
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from torch.nn import functional

from videollama_converters.tidy_graph import tidy
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, DECODER, EMBEDDING, VISION_ENCODER, Graph
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.config import ModelConfig
from videollama_core.model.connector import Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.vision import VisionEncoder

OPSET = 18  # what TensorRT 10 and ONNX Runtime both read; LayerNormalization is one node from 17 on
Sources = dict[str, Callable[[], Tensor]]


class Embedding(nn.Module):
    """input_ids int64 [B, S] -> inputs_embeds [B, S, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        table = nn.Embedding(config.language.vocab_size, config.language.width)
        self.model = nn.ModuleDict({"embed_tokens": table})  # the published name

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model["embed_tokens"](input_ids)


class _Float32Norm(nn.LayerNorm):
    """A LayerNorm that computes in float32 inside a graph of fewer bits, where its sums of squares overflow."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return functional.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def lower(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In place: compute in `dtype`, norms in float32. The types of the graph are those of its engine (strong typing)."""
    for child in module.modules():
        if type(child) is nn.LayerNorm:
            child.__class__ = _Float32Norm
    return module.to(dtype)


def build_module(graph: Graph, config: ModelConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The PyTorch module behind a graph, without values."""
    module = _module(graph, config)
    return module if dtype is torch.float32 else lower(module, dtype)


def _module(graph: Graph, config: ModelConfig) -> nn.Module:
    with torch.device("meta"):
        if graph is VISION_ENCODER:
            return VisionEncoder(config.vision, config.pixels).eval()
        if graph is CONNECTOR:
            return Connector(config).eval()
        if graph is AUDIO_ENCODER:
            assert config.audio is not None
            return AudioEncoder(config.audio, config.language.width).eval()
        if graph is EMBEDDING:
            return Embedding(config).eval()
        return Decoder(config.language).eval()


def example_inputs(
    graph: Graph, config: ModelConfig, rows: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Inputs of the right shapes; seeded, so that two runs compare."""
    found = _inputs(graph, config, rows)
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in found)


def _inputs(graph: Graph, config: ModelConfig, rows: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    language, vision = config.language, config.vision
    if graph is VISION_ENCODER:
        return (
            torch.randint(
                0, 256, (rows, config.pixels.size, config.pixels.size, 3), generator=generator, dtype=torch.uint8
            ),
        )
    if graph is CONNECTOR:
        features = torch.randn(rows, vision.tokens, vision.width, generator=generator)
        return features, torch.arange(4) % rows
    if graph is AUDIO_ENCODER:
        assert config.audio is not None
        return (10.0 * torch.randn(1, config.audio.rows, config.audio.bins, generator=generator),)
    if graph is EMBEDDING:
        return (torch.randint(0, language.vocab_size, (rows, 3), generator=generator),)
    new, cached = 3, 5
    bias = torch.zeros(rows, 1, new, cached + new)
    bias[:, :, :, 0] = torch.finfo(torch.float32).min
    return (
        torch.randn(rows, new, language.width, generator=generator),
        torch.arange(cached, cached + new).repeat(rows, 1),
        bias,
        torch.full((rows,), new - 1),
        torch.randn(language.layers, 2, rows, language.kv_heads, cached, language.head_dim, generator=generator),
    )


def _dynamic_shapes(graph: Graph) -> tuple[dict[int, object], ...]:
    any_size = torch.export.Dim.DYNAMIC
    axes = {
        VISION_ENCODER.name: ((0,),),
        CONNECTOR.name: ((0,), (0,)),
        AUDIO_ENCODER.name: ((0,),),
        EMBEDDING.name: ((0, 1),),
        DECODER.name: ((0, 1), (0, 1), (0, 2, 3), (0,), (2, 4)),
    }[graph.name]
    return tuple({axis: any_size for axis in one} for one in axes)


def unchanged(model: ir.Model) -> None:
    """The edit that is none."""


def float_pixels(model: ir.Model) -> None:
    """The vision graph for ONNX Runtime: the cast of its first input to float32 finds float32 there.

    Noised pixels (contrast.py) are no whole numbers. TensorRT's graph keeps uint8.
    """
    (frames,) = model.graph.inputs
    assert all(node.op_type == "Cast" for node, _ in frames.uses())
    frames.dtype = ir.DataType.FLOAT


def trace_graph(graph: Graph, config: ModelConfig, dtype: torch.dtype = torch.float32) -> ir.Model:
    """The graph of a module, its parameters without values."""
    module = build_module(graph, config, dtype)
    meta_inputs = tuple(tensor.to("meta") for tensor in example_inputs(graph, config, dtype=dtype))
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # the exporter's notes on its own internals
        program = torch.onnx.export(
            module,
            meta_inputs,
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(graph),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    tidy(program.model)
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


def write_without_values(model: ir.Model, parameters: Collection[str], path: Path) -> None:
    """Write a traced graph whose parameters are holes of a sparse file: enough for a parser, and no room on the disk."""
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


class _quiet:
    """Only errors of a logger and its children while it lasts."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
