"""Quantizes the vision tower's linear layers to fp8, for TensorRT on Ada and Hopper.

A strongly typed engine multiplies in fp8 where both factors of a product pass through QuantizeLinear to FLOAT8E4M3FN and
DequantizeLinear back; TensorRT folds the weights' pair into stored fp8. One scale per tensor: its largest absolute value divided
by 448, the largest value of the type. For inputs, that value is observed on calibration media that the operator chooses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from videollama_converters.export.graph_specs import graph_sources
from videollama_converters.export.graphs import export_graph, unchanged
from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.engines.bundle import graph_path
from videollama_core.engines.specs import Graph
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.protocol.contract import IMAGE_SUFFIXES
from videollama_core.protocol.errors import InvalidRequest

LARGEST = 448.0


@dataclass(frozen=True)
class Scales:
    """Divisors of one linear layer's inputs and weights."""

    inputs: float
    weights: float


def export_typed(
    graph: Graph,
    parts: CheckpointParts,
    tick: Callable[[], None],
    dtype: torch.dtype,
    media: Sequence[Path],
    folder: Path,
) -> None:
    """Write a strongly typed graph for TensorRT to its path below `folder`. Args: media: calibrate fp8 scales; none: no fp8."""
    edit = partial(quantize, scales=calibrate(parts, media)) if media else unchanged
    path = folder / graph_path(graph.name)
    export_graph(graph, parts.config, graph_sources(graph, parts), path, tick, dtype, edit)


def calibrate(parts: CheckpointParts, media: Sequence[Path]) -> dict[str, Scales]:
    """Name of each linear layer's weight -> scales. Raises: UnreadableMedia, and InvalidRequest if a layer's inputs are all zero."""
    tower = parts.vision_encoder()
    layers = {name: module for name, module in tower.named_modules() if isinstance(module, nn.Linear)}
    largest = dict.fromkeys(layers, 0.0)

    def observe(name: str) -> None:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest[name], float(inputs[0].abs().max()))

        layers[name].register_forward_pre_hook(record)

    for name in layers:
        observe(name)
    with torch.inference_mode():
        for path in media:
            tower(torch.from_numpy(_frames(parts, path)))
    unused = [name for name, value in largest.items() if not value > 0]
    if unused:
        raise InvalidRequest(
            f"layer {unused[0]} had only zero inputs in {len(media)} media; use ordinary videos or images"
        )
    return {
        f"{name}.weight": Scales(largest[name] / LARGEST, float(layer.weight.abs().max()) / LARGEST)
        for name, layer in layers.items()
    }


def unit_scales(tower: nn.Module) -> dict[str, Scales]:
    """Scales of 1 for the same layers: for a graph that is only parsed."""
    return {
        f"{name}.weight": Scales(1.0, 1.0) for name, module in tower.named_modules() if isinstance(module, nn.Linear)
    }


def _frames(parts: CheckpointParts, path: Path) -> np.ndarray:
    """Frames uint8 [T, S, S, 3], preprocessed as for a request."""
    try:
        files = [path.read_bytes()]
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}; use readable videos or images") from error
    kind = "image" if path.suffix.lower() in IMAGE_SUFFIXES else "video"
    return prepare(kind, files, Segment(), parts.config).frames


def quantize(model: ir.Model, scales: dict[str, Scales]) -> None:
    """In place: insert a quantize/dequantize pair before both inputs of each product whose weight has scales."""
    writer = _Writer(model)
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        value, transposed = node.inputs
        transpose = transposed.producer() if transposed is not None else None
        weight = transpose.inputs[0] if transpose is not None and transpose.op_type == "Transpose" else None
        if value is None or transpose is None or weight is None or weight.name not in scales:
            continue
        layer_scales = scales[weight.name]
        node.replace_input_with(0, writer.pair(value, layer_scales.inputs, f"{weight.name}.input"))
        transpose.replace_input_with(0, writer.pair(weight, layer_scales.weights, weight.name))
    model.graph.sort()


class _Writer:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._zero = self._constant("fp8_zero", np.zeros((), ml_dtypes.float8_e4m3fn))

    def pair(self, value: ir.Value, scale: float, name: str) -> ir.Value:
        """The value rounded to fp8, converted back to its own type."""
        assert value.dtype is not None, value.name
        factor = self._constant(f"{name}.scale", np.array(scale, value.dtype.numpy()))
        small = ir.node("QuantizeLinear", [value, factor, self._zero])
        back = ir.node("DequantizeLinear", [small.outputs[0], factor, self._zero])
        for output, dtype in ((small.outputs[0], ir.DataType.FLOAT8E4M3FN), (back.outputs[0], value.dtype)):
            output.shape, output.type = value.shape, ir.TensorType(dtype)
        small.outputs[0].name, back.outputs[0].name = f"{name}.fp8", f"{name}.rounded"
        self._graph.extend([small, back])
        return back.outputs[0]

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value
