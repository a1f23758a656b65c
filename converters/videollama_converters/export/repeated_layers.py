"""Makes a decoder's graph from the graph of one layer, by copying that layer as often as the model has it.

The exporter takes one to two seconds for a layer of a dense decoder and four for one with eight experts, whatever the sizes: half a
minute to minutes for a published model. Equal layers have equal nodes, so one is exported, with the nodes before and after the stack.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from videollama_core.engines.specs import DECODER

LAYER_INPUT = DECODER.inputs[0]  # the first layer's input is the decoder's own
LAYERED = "layered"  # the last layer's output: the head reads it, and nothing produces it yet
LAYER_OUTPUT, LAYER_NEW = "layer_output", "layer_new"
LOGITS, NEW = DECODER.outputs
_NAME = re.compile(r"\b[a-z]\w*")  # of a symbolic dimension, alone or in a sum
_FIRST, _PARAMETERS = "_0", "model.layers.{}."  # suffix of the first layer's inputs, prefix of a layer's parameters


def repeat_layer(model: ir.Model, layers: int) -> None:
    """In place: turn the graph of a CutDecoder (graph_specs.py) into that of a decoder with `layers` layers."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    own_inputs = [inputs[name + _FIRST] for name in DECODER.per_layer]
    parameters = [value for name, value in graph.initializers.items() if name.startswith(_PARAMETERS.format(0))]
    layer = _made_from(graph, [inputs[LAYER_INPUT], *own_inputs, *parameters])
    sizes = {name for value in graph.inputs for name in _sizes(value)}  # the same in all layers
    x, new, past = outputs[LAYER_OUTPUT], [outputs[LAYER_NEW]], list(own_inputs)
    for number in range(1, layers):
        copies = Copies(number, {inputs[LAYER_INPUT]: x}, sizes)
        past += [copies.add(value, _name(value).replace(_FIRST, f"_{number}")) for value in own_inputs]
        for value in parameters:
            name = _name(value).replace(_PARAMETERS.format(0), _PARAMETERS.format(number))
            graph.initializers.add(copies.add(value, name))  # without a value, as the first layer's
        graph.extend([copies.copy(node) for node in layer])
        x = copies.of[outputs[LAYER_OUTPUT]]
        new.append(copies.of[outputs[LAYER_NEW]])
    inputs[LAYERED].replace_all_uses_with(x)
    graph.append(_stacked(new))
    graph.inputs[:] = [*(inputs[name] for name in DECODER.inputs), *past]
    graph.outputs[:] = [outputs[LOGITS], graph[-1].outputs[0]]
    graph.sort()


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
