"""The operators that TensorRT 10.14's ONNX importer accepts, and known kernel defects: graphs are checked before they are built.

The table lists the operators that our graphs may use, with the types and ranks documented for TensorRT 10.14 (onnx-tensorrt's
docs/operators.md and the release notes). All others are refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

MAX_RANK = 8
OPSETS = range(9, 21)  # 20 is the highest that the release notes of 10.x name
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16")
_INTS = ("INT32", "INT64", "BOOL")
_ALL = (*_FLOATS, *_INTS)
# operator -> types of its first input
OPERATORS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Abs", "Neg"), (*_FLOATS, "INT32", "INT64")),
    **dict.fromkeys(("Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Softmax", "Cos", "Sin"), _FLOATS),
    **dict.fromkeys(("Floor", "Ceil", "Round"), _FLOATS),
    **dict.fromkeys(("MatMul", "Gemm", "Einsum", "LayerNormalization", "Conv", "Gelu"), _FLOATS),
    **dict.fromkeys(("GlobalAveragePool", "AveragePool", "InstanceNormalization", "GroupNormalization"), _FLOATS),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), (*_FLOATS, "INT32", "INT64")),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"), _ALL),
    **dict.fromkeys(("And", "Or", "Not", "Xor"), ("BOOL",)),
    **dict.fromkeys(("Clip",), (*_FLOATS, "INT32", "INT64")),
    **dict.fromkeys(
        (
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Identity",
            "Concat",
            "Slice",
            "Split",
            "Expand",
            "Pad",
        ),
        _ALL,
    ),
    **dict.fromkeys(("TopK", "ScatterElements"), (*_FLOATS, "INT32", "INT64")),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Where", "Tile", "Shape", "Size"), _ALL),
    "Range": (*_FLOATS, "INT32", "INT64"),
    "ConstantOfShape": ("INT64",),
    "Constant": _ALL,
    "Cast": (*_ALL, "UINT8"),
    "QuantizeLinear": _FLOATS,
    "DequantizeLinear": ("FLOAT8E4M3FN",),
}
_NORMS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization")


@dataclass(frozen=True)
class Violation:
    """A node that TensorRT does not take, and why."""

    graph: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.graph}: {self.node}: {self.reason}"


def check_graph(path: Path) -> list[Violation]:
    """Everything in a graph that TensorRT 10.14 would refuse or is known to compute incorrectly."""
    model = onnx.load(str(path), load_external_data=False)
    foreign = [node for node in model.graph.node if node.domain not in ("", "ai.onnx")]
    if foreign:
        reason = "an operator of a custom domain is not supported by TensorRT"
        return [Violation(path.name, f"{node.domain}.{node.op_type}", reason) for node in foreign]
    model = onnx.shape_inference.infer_shapes(model)
    types = _types(model.graph)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    violations = []

    def bad(node: onnx.NodeProto, reason: str) -> None:
        violations.append(Violation(path.name, f"{node.op_type} {node.name or node.output[0]}", reason))

    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version not in OPSETS:
            violations.append(Violation(path.name, "opset", f"{opset.version}; expected {OPSETS[0]} to {OPSETS[-1]}"))
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            bad(node, "not in TensorRT 10.14's table")
            continue
        kinds = [types[name] for name in node.input if name in types]
        if kinds and kinds[0][0] not in OPERATORS[node.op_type]:
            bad(node, f"computes in {kinds[0][0]}; supported are {', '.join(OPERATORS[node.op_type])}")
        for name in (*node.input, *node.output):
            rank = types.get(name, ("", 0))[1]
            if rank > MAX_RANK:
                bad(node, f"{name} has rank {rank}; at most {MAX_RANK} is supported")
        if node.op_type in _NORMS and kinds and kinds[0][0] != "FLOAT":
            bad(node, f"normalizes in {kinds[0][0]}: sums of squares overflow; cast to FLOAT around it")
        if node.op_type.startswith("Reduce") and len(node.input) == 2 and node.input[1] not in stored:
            bad(node, "its axes are computed; TensorRT needs them as an initializer")
        if node.op_type == "Conv":
            _check_convolution(node, stored, types, bad)
    return violations


def _check_convolution(
    node: onnx.NodeProto,
    stored: dict[str, TensorProto],
    types: dict[str, tuple[str, int]],
    bad: Callable[[onnx.NodeProto, str], None],
) -> None:
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    kind, rank = types.get(node.input[0], ("", 0))
    weight = stored.get(node.input[1])
    if weight is None:
        bad(node, "its weights are computed; TensorRT needs them as an initializer")
        return
    if len(node.input) == 3 and node.input[2] not in stored:
        bad(node, "its bias is computed; TensorRT 10.3 reportedly needs an initializer, or no bias")
    if rank not in (0, 3, 4, 5):
        bad(node, f"input has rank {rank}; 3, 4 or 5 is supported")
    per_group = weight.dims[1]
    if group > 1 and per_group == 1 and kind == "BFLOAT16":
        bad(node, "depthwise convolution in BFLOAT16 lacks kernels on some GPUs: compute it in FLOAT16 or FLOAT")
    if group > 1 and per_group % 4 and kind in ("INT8", "UINT8"):
        bad(node, f"{per_group} channels per group in INT8; expected a multiple of 4")


def _types(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """Tensor name -> (type name, rank)."""
    types = {
        value.name: (TensorProto.DataType.Name(value.type.tensor_type.elem_type), len(value.type.tensor_type.shape.dim))
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.HasField("tensor_type")
    }
    types |= {
        stored.name: (TensorProto.DataType.Name(stored.data_type), len(stored.dims)) for stored in graph.initializer
    }
    return types
