"""Rewrites the exporter's graphs where TensorRT's importer would fail, without changing their results.

No constants are folded beyond those named here: the builder fails on graphs whose constants were all folded.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes.common import RemoveUnusedNodesPass

# Operators whose output holds the values of their first input.
_SAME_VALUES = ("Cast", "Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def tidy(model: ir.Model) -> None:
    """In place: replace CastLike by Cast, take the shape of a uint8 input from its cast, store the axes of reductions as
    initializers, and drop computed zero biases from convolutions."""
    for node in list(model.graph):
        if node.op_type == "CastLike":
            value, like = node.inputs
            assert value is not None and like is not None
            dtype = like.dtype or _type_behind(like)
            cast = ir.node("Cast", [value], attributes={"to": dtype}, name=node.name)
            _keep_type(node.outputs[0], cast.outputs[0], dtype)
            convenience.replace_nodes_and_values(model.graph, node, [node], [cast], node.outputs, cast.outputs)
    for entry in model.graph.inputs:
        if entry.dtype is not ir.DataType.UINT8:
            continue
        users = [node for node, _ in entry.uses()]
        (cast,) = [node for node in users if node.op_type == "Cast"]
        for node in users:
            if node.op_type == "Shape":
                node.replace_input_with(0, cast.outputs[0])
    for node in list(model.graph):
        if node.op_type.startswith("Reduce") and len(node.inputs) == 2:
            _store_axes(node, model.graph)
        if node.op_type == "Conv" and len(node.inputs) == 3:
            _drop_computed_bias(node)
    RemoveUnusedNodesPass()(model)
    model.graph.sort()


def _store_axes(node: ir.Node, graph: ir.Graph) -> None:
    """Store computed axes as an initializer; the importer otherwise fails with "Axis input must be an initializer"."""
    axes = node.inputs[1]
    if axes is None or axes.is_initializer():
        return
    name = f"{node.outputs[0].name}.axes"
    array = _constant_behind(axes).astype(np.int64).ravel()
    tensor = ir.tensor(array, name=name)
    stored = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(stored)
    node.replace_input_with(1, stored)


def _drop_computed_bias(node: ir.Node) -> None:
    """Drop the zero bias that the exporter computes, from the shape of the weights, for a convolution without one."""
    bias = node.inputs[2]
    if bias is None or bias.is_initializer():
        return
    assert not _constant_behind(bias).any(), f"{node.name}: a computed bias that is not zero"
    node.resize_inputs(2)


def _constant_behind(value: ir.Value) -> np.ndarray:
    """The constant that a value holds in another shape or type."""
    node = value.producer()
    while node is not None and node.op_type in _SAME_VALUES:
        source = node.inputs[0]
        assert source is not None, node.name
        value, node = source, source.producer()
    constant = convenience.get_const_tensor(value)
    assert constant is not None, f"{value.name} is computed from the graph's inputs"
    return constant.numpy()


def _type_behind(value: ir.Value) -> ir.DataType:
    """The type of a value that the exporter left untyped: that of the value from which it is computed."""
    while value.dtype is None:
        node = value.producer()
        assert node is not None, value.name
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int())
        if node.op_type == "Constant":
            (content,) = node.attributes.values()
            if content.type is ir.AttributeType.TENSOR:
                return content.as_tensor().dtype
            is_float = content.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS)
            return ir.DataType.FLOAT if is_float else ir.DataType.INT64
        source = node.inputs[0]
        assert source is not None, value.name
        value = source
    return value.dtype


def _keep_type(old: ir.Value, new: ir.Value, dtype: ir.DataType) -> None:
    new.shape, new.type = old.shape, ir.TensorType(dtype)
