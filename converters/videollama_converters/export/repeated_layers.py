"""Makes the graph of a whole decoder, tower or connector from the graph of one layer, by copying that layer as often as the model has it.

The exporter takes half a second for a tower's layer, one to two seconds for a dense decoder's and four for one with eight experts,
whatever the sizes: half a minute to minutes for a published model. Equal layers have equal nodes, so one is exported, with the nodes
before and after the stack (cut_modules.py).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from videollama_core.engines.specs import DECODER

LAYER_INPUT = DECODER.inputs[0]  # a decoder's first layer takes the decoder's own input
LAYERED = "layered"  # the last layer's output: the nodes after the stack read it, and nothing produces it yet
BEFORE = "before_layers"  # the input of a tower's first layer
LAYER_OUTPUT, LAYER_NEW = "layer_output", "layer_new"
LOGITS, NEW = DECODER.outputs
_NAME = re.compile(r"\b[a-z]\w*")  # of a symbolic dimension, alone or in a sum
_FIRST = "_0"  # suffix of the first layer's inputs
_DECODER_LAYERS, _TOWER_LAYERS = "model.layers.{}.", "encoder.layers.{}."  # part of the names of a layer's parameters
_CONNECTOR_BLOCKS = {
    0: "s1.b{}.",
    3: "s2.b{}.",
}  # place among the inputs of the cut connector's pieces -> the same of a block
_REPEATED_BLOCK = 2  # the first has other sizes than those behind it


def repeat_decoder_layer(model: ir.Model, layers: int) -> None:
    """In place: turn the graph of a CutDecoder (cut_modules.py) into that of a decoder with `layers` layers."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    own_inputs = [inputs[name + _FIRST] for name in DECODER.per_layer]
    layer = Layer(graph, _DECODER_LAYERS, inputs[LAYER_INPUT], own_inputs)
    x, new, past = outputs[LAYER_OUTPUT], [outputs[LAYER_NEW]], list(own_inputs)
    for number in range(1, layers):
        copies = layer.copy(number, x)
        past += [copies.of[value] for value in own_inputs]
        x = copies.of[outputs[LAYER_OUTPUT]]
        new.append(copies.of[outputs[LAYER_NEW]])
    inputs[LAYERED].replace_all_uses_with(x)
    graph.append(_stacked(new))
    graph.inputs[:] = [*(inputs[name] for name in DECODER.inputs), *past]
    graph.outputs[:] = [outputs[LOGITS], graph[-1].outputs[0]]
    graph.sort()


def repeat_tower_layer(model: ir.Model, layers: int) -> None:
    """In place: turn the graph of a CutVisionEncoder or CutAudioEncoder into that of a tower with `layers` layers."""
    graph = model.graph
    media, layer_input, layered = graph.inputs
    before, layer_output, features = graph.outputs
    name = features.name
    for value in (layer_input, layered):
        for node, place in list(value.uses()):
            if node.op_type == "Shape":  # the exporter reads the batch size from any of the inputs
                assert node.attributes["start"].as_int() == 0 and node.attributes["end"].as_int() == 1, node.name
                node.replace_input_with(place, media)
    layer = Layer(graph, _TOWER_LAYERS, layer_input)
    x = layer_output
    for number in range(1, layers):
        x = layer.copy(number, x).of[layer_output]
    layer_input.replace_all_uses_with(before)
    layered.replace_all_uses_with(x, replace_graph_outputs=True)  # SigLIP's features are the last layer's output itself
    graph.inputs[:] = [media]
    graph.outputs[:] = graph.outputs[-1:]
    graph.outputs[0].name = name
    graph.sort()


def repeat_connector_block(model: ir.Model, blocks: int) -> None:
    """In place: turn the graph of a CutConnector into that of a connector with `blocks` blocks in each stage."""
    graph = model.graph
    media, pieces = graph.inputs[:2], graph.inputs[2:]
    *outputs, tokens = graph.outputs  # each of `outputs` belongs to the input at its place in `pieces`
    for place, prefix in _CONNECTOR_BLOCKS.items():
        block = Layer(graph, prefix, pieces[place], first=_REPEATED_BLOCK)
        x = repeated = outputs[place + 1]
        for number in range(_REPEATED_BLOCK + 1, blocks + 1):
            x = block.copy(number, x).of[repeated]
        outputs[place + 1] = x
    names: dict[
        str, str
    ] = {}  # each piece has a symbolic dimension of its own; here, what the piece before it calls that
    for piece, output in zip(pieces, outputs, strict=True):
        piece.replace_all_uses_with(output)
        (own,), rows = _sizes(piece), output.shape
        assert rows is not None
        names[own] = _renamed(str(rows[0]), names)
    for node in graph:
        for value in node.outputs:
            value.shape = value.shape and ir.Shape(
                [_renamed(str(size), names) if isinstance(size, ir.SymbolicDim) else size for size in value.shape]
            )
    graph.inputs[:] = media
    graph.outputs[:] = [tokens]
    graph.sort()


class Layer:
    """The first layer in a graph, from which the others are copied."""

    def __init__(
        self, graph: ir.Graph, prefix: str, x: ir.Value, own_inputs: Iterable[ir.Value] = (), first: int = 0
    ) -> None:
        """
        Args:
            prefix: what the names of the layer's parameters contain, with the layer's number left open.
            x: the layer's input.
            own_inputs: the graph's inputs that belong to this layer alone.
            first: the number of the layer that is in the graph.
        """
        self._graph, self._prefix, self._x, self._own_inputs = graph, prefix, x, list(own_inputs)
        self._first = prefix.format(first)
        self._parameters = [value for name, value in graph.initializers.items() if self._first in name]
        self._nodes = _made_from(graph, [x, *self._own_inputs, *self._parameters])
        self._sizes = {name for value in graph.inputs for name in _sizes(value)}  # the same in all layers

    def copy(self, number: int, x: ir.Value) -> "Copies":
        """Add a copy of the layer to the graph, with this number and this input."""
        copies = Copies(number, {self._x: x}, self._sizes)
        for value in self._own_inputs:
            copies.add(value, _name(value).replace(_FIRST, f"_{number}"))
        for value in self._parameters:
            name = _name(value).replace(self._first, self._prefix.format(number))
            self._graph.initializers.add(copies.add(value, name))  # without a value, as the first layer's
        self._graph.extend([copies.copy(node) for node in self._nodes])
        return copies


def _made_from(graph: ir.Graph, values: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that depend on one of these values, directly or through other nodes."""
    reached, dependent = set(values), []
    for node in graph:
        if not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
            dependent.append(node)
    return dependent


@dataclass
class Copies:
    """The copies of one layer's values."""

    number: int
    of: dict[ir.Value, ir.Value]
    sizes: set[str]  # names of symbolic dimensions that all layers share

    def add(self, value: ir.Value, name: str) -> ir.Value:
        shape = value.shape and ir.Shape(
            [_NAME.sub(self._size, str(size)) if isinstance(size, ir.SymbolicDim) else size for size in value.shape]
        )
        self.of[value] = ir.Value(name=name, shape=shape, type=value.type)
        return self.of[value]

    def copy(self, node: ir.Node) -> ir.Node:
        """A node on the copies of its inputs; an input without a copy is shared."""
        assert not any(attribute.type is ir.AttributeType.GRAPH for attribute in node.attributes.values()), node.name
        return ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self.of.get(value, value) for value in node.inputs],
            node.attributes.values(),
            outputs=[self.add(value, f"{value.name}.{self.number}") for value in node.outputs],
            name=f"{node.name}.{self.number}",
        )

    def _size(self, match: re.Match[str]) -> str:
        """Rename a dimension that a layer computes, such as an expert's number of positions: equal names would mean equal sizes."""
        return match[0] if match[0] in self.sizes else f"{match[0]}_{self.number}"


def _renamed(size: str, names: dict[str, str]) -> str:
    return names.get(size) or _NAME.sub(lambda match: f"({names[match[0]]})" if match[0] in names else match[0], size)


def _sizes(value: ir.Value) -> list[str]:
    """The names of symbolic dimensions in a value's shape."""
    return _NAME.findall(" ".join(str(size) for size in value.shape or () if isinstance(size, ir.SymbolicDim)))


def _stacked(new: list[ir.Value]) -> ir.Node:
    """A node that concatenates the layers' tensors [1, ...] to [layers, ...]."""
    node, shape = ir.node("Concat", new, {"axis": 0}, name=NEW), new[0].shape
    (value,) = node.outputs
    assert shape is not None
    value.name, value.type, value.shape = NEW, new[0].type, ir.Shape([len(new), *list(shape)[1:]])
    return node


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
