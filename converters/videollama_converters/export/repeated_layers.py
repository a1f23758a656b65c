"""A decoder's graph from that of one layer: the layer is copied as often as the model has it.

The exporter takes one to two seconds for a layer of a dense decoder and four for one of eight experts, whatever the sizes: half a
minute to minutes for a published model. Equal layers are equal nodes, so one is exported, with what stands before and behind them all.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from videollama_core.engines.specs import DECODER

LAYER_INPUT = DECODER.inputs[0]  # of the first layer it is the decoder's own
LAYERED = "layered"  # what the last layer gives: taken by the head, and fed by nothing yet
LAYER_OUTPUT, LAYER_NEW = "layer_output", "layer_new"
LOGITS, NEW = DECODER.outputs
_NAME = re.compile(r"\b[a-z]\w*")  # of a size, alone or in a sum
_FIRST, _PARAMETERS = "_0", "model.layers.{}."  # how inputs and parameters of the first layer are named


def repeat_layer(model: ir.Model, layers: int) -> None:
    """In place: the graph of a cut decoder (graph_specs.py) becomes that of a decoder of so many layers."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    own_inputs = [inputs[name + _FIRST] for name in DECODER.per_layer]
    parameters = [value for name, value in graph.initializers.items() if name.startswith(_PARAMETERS.format(0))]
    layer = _made_from(graph, [inputs[LAYER_INPUT], *own_inputs, *parameters])
    sizes = {name for value in graph.inputs for name in _sizes(value)}  # alike in all layers
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
    """The nodes that need one of these values, themselves or by others."""
    reached, found = set(values), []
    for node in graph:
        if not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
            found.append(node)
    return found


@dataclass
class Copies:
    """The copies of one layer's values."""

    number: int
    of: dict[ir.Value, ir.Value]
    sizes: set[str]  # names of sizes that this layer shares

    def add(self, value: ir.Value, name: str) -> ir.Value:
        shape = value.shape and ir.Shape(
            [_NAME.sub(self._size, str(size)) if isinstance(size, ir.SymbolicDim) else size for size in value.shape]
        )
        self.of[value] = ir.Value(name=name, shape=shape, type=value.type)
        return self.of[value]

    def copy(self, node: ir.Node) -> ir.Node:
        """A node on the copies of its inputs, and on what has none as it is."""
        assert not any(attribute.type is ir.AttributeType.GRAPH for attribute in node.attributes.values()), node.name
        return ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self.of.get(value, value) for value in node.inputs],
            node.attributes.values(),
            outputs=[self.add(value, f"{value.name}.{self.number}") for value in node.outputs],
            name=f"{node.name}.{self.number}",
        )

    def _size(self, found: re.Match[str]) -> str:
        """What a layer finds itself, as how many positions chose an expert, is another size in each: one name would be one size."""
        return found[0] if found[0] in self.sizes else f"{found[0]}_{self.number}"


def _sizes(value: ir.Value) -> list[str]:
    """The names of sizes in a value's shape."""
    return _NAME.findall(" ".join(str(size) for size in value.shape or () if isinstance(size, ir.SymbolicDim)))


def _stacked(new: list[ir.Value]) -> ir.Node:
    """[1, ...] of each layer, in one tensor."""
    node, shape = ir.node("Concat", new, {"axis": 0}, name=NEW), new[0].shape
    (value,) = node.outputs
    assert shape is not None
    value.name, value.type, value.shape = NEW, new[0].type, ir.Shape([len(new), *list(shape)[1:]])
    return node


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
