"""The exporter's graphs, rewritten where TensorRT's importer would stumble. The values that come out are the same."""

import onnx_ir as ir
from onnx_ir import convenience


def tidy(model: ir.Model) -> None:
    """In place: CastLike becomes Cast; the shape of a uint8 input is asked of what it is cast to."""
    for node in list(model.graph):
        if node.op_type == "CastLike":
            value, like = node.inputs
            assert value is not None and like is not None
            dtype = like.dtype or _type_behind(like)
            cast = ir.node("Cast", [value], attributes={"to": dtype})
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
    model.graph.sort()


def _type_behind(value: ir.Value) -> ir.DataType:
    """The type of a value that the exporter left open: that of the value from which it is made."""
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
