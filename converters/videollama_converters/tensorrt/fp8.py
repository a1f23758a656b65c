"""The vision tower's linear layers in fp8, for TensorRT on Ada and Hopper.

A strongly typed engine multiplies in fp8 where both factors of a product pass QuantizeLinear to FLOAT8E4M3FN and DequantizeLinear
back; TensorRT folds the weights' pair into stored fp8. One scale per tensor: the largest value seen over 448, which is the
largest of the type. Inputs are seen on media of the operator's choice, weights as they are.
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
OPSET = 19  # first with fp8


@dataclass(frozen=True)
class Scales:
    """Of one linear layer: what its inputs and its weights are divided by."""

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
    """Write a graph of one type for TensorRT at its place below `folder`. Args: media: scales of a graph in fp8; none: no fp8."""
    edit = partial(quantize, scales=calibrate(parts, media)) if media else unchanged
    path = folder / graph_path(graph.name)
    export_graph(graph, parts.config, graph_sources(graph, parts), path, tick, dtype, edit)


def calibrate(parts: CheckpointParts, media: Sequence[Path]) -> dict[str, Scales]:
    """Name of each linear layer's weight -> scales. Raises: UnreadableMedia, and InvalidRequest for layers that see nothing."""
    tower = parts.vision_encoder()
    layers = {name: module for name, module in tower.named_modules() if isinstance(module, nn.Linear)}
    largest = dict.fromkeys(layers, 0.0)

    def watch(name: str) -> None:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest[name], float(inputs[0].abs().max()))

        layers[name].register_forward_pre_hook(see)

    for name in layers:
        watch(name)
    with torch.inference_mode():
        for path in media:
            tower(torch.from_numpy(_frames(parts, path)))
    blind = [name for name, value in largest.items() if not value > 0]
    if blind:
        raise InvalidRequest(f"layer {blind[0]} saw nothing in {len(media)} media; name ordinary videos or pictures")
    return {
        f"{name}.weight": Scales(largest[name] / LARGEST, float(layer.weight.abs().max()) / LARGEST)
        for name, layer in layers.items()
    }


def unit_scales(tower: nn.Module) -> dict[str, Scales]:
    """Of the same layers, without their values: for a graph that is only read."""
    return {f"{name}.weight": Scales(1.0, 1.0) for name, each in tower.named_modules() if isinstance(each, nn.Linear)}


def _frames(parts: CheckpointParts, path: Path) -> np.ndarray:
    """uint8 [T, S, S, 3], as a question would see them."""
    try:
        files = [path.read_bytes()]
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}; name videos or pictures") from error
    kind = "image" if path.suffix.lower() in IMAGE_SUFFIXES else "video"
    return prepare(kind, files, Segment(), parts.config).frames


def quantize(model: ir.Model, scales: dict[str, Scales]) -> None:
    """In place: a pair of nodes before both inputs of each product with a weight that has scales."""
    writer = _Writer(model)
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        value, turned = node.inputs
        transpose = turned.producer() if turned is not None else None
        weight = transpose.inputs[0] if transpose is not None and transpose.op_type == "Transpose" else None
        if value is None or transpose is None or weight is None or weight.name not in scales:
            continue
        found = scales[weight.name]
        node.replace_input_with(0, writer.pair(value, found.inputs, f"{weight.name}.input"))
        transpose.replace_input_with(0, writer.pair(weight, found.weights, weight.name))
    model.graph.sort()
    model.opset_imports[""] = OPSET


class _Writer:
    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._zero = self._constant("fp8_zero", np.zeros((), ml_dtypes.float8_e4m3fn))

    def pair(self, value: ir.Value, scale: float, name: str) -> ir.Value:
        """The value rounded to fp8, in its own type again."""
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
