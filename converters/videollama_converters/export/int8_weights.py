"""Stores the language model's matrices in int8 for ONNX Runtime: a quarter of the bytes, which bound a decoding step's time.

Each BLOCK of weights along the input dimension shares a float32 scale: weight = (code - 128) * scale, codes 1 to 255. The
operator is ONNX Runtime's own (com.microsoft.MatMulNBits), which uses a checkpoint's layout of matrices, [out, in].
"""

from collections.abc import Callable

import onnx_ir as ir
import torch
from onnx_ir import convenience
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor
from torch.nn import functional

from videollama_core.checkpoint.shards import Sources

DOMAIN = "com.microsoft"
BLOCK = 128  # smaller blocks are slower: 32 gives half the speed-up, with errors two thirds as large
# Multiply in int8 as well: each block of an input row has its own scale, so requests in one step do not affect each other.
# Multiplying in float32 (level 1) takes five times as long as with float32 weights (docs/log.md).
ACCURACY_LEVEL = 4
ROUTER = ".block_sparse_moe.gate.weight"  # Mixtral's: small, and a rounded score may select another expert
_ZERO = 128  # the code of 0


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> codes uint8 [out, blocks, BLOCK], the last block padded with zeros, and scales float32 [out, blocks]."""
    blocks = functional.pad(weight.float(), (0, -weight.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scales = blocks.abs().amax(-1) / (_ZERO - 1)
    codes = torch.round(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]) + _ZERO
    return codes.to(torch.uint8), scales


def store_in_int8(model: ir.Model, sources: Sources, tick: Callable[[], None]) -> None:
    """In place: make every product with a matrix of the checkpoint, except the routers', take it in int8.

    Args:
        sources: reads each of the module's parameters; a matrix is read and rounded when the graph is written.
        tick: called for each matrix written.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if name not in sources or name.endswith(ROUTER) or value.shape is None or len(value.shape) != 2:
            continue
        stored = _stored(name, value.shape.numpy(), sources[name], tick)
        for entry in stored:
            graph.register_initializer(entry)
        for product in _products(value):
            _replace(graph, product, stored, value.shape.numpy())
        del graph.initializers[name]
    RemoveUnusedNodesPass()(model)
    graph.sort()
    model.opset_imports[DOMAIN] = 1


def _stored(
    name: str, shape: tuple[int, ...], read: Callable[[], Tensor], tick: Callable[[], None]
) -> tuple[ir.Value, ir.Value]:
    """Codes and scales of a matrix, which is read once for each: nothing is kept in memory in between."""
    rows, blocks = shape[0], -(-shape[1] // BLOCK)

    def codes() -> ir.TensorProtocol:
        tick()
        return TorchTensor(quantize(read())[0], name=f"{name}.codes")

    def scales() -> ir.TensorProtocol:
        return TorchTensor(quantize(read())[1], name=f"{name}.scales")

    return (
        _lazy(f"{name}.codes", codes, ir.DataType.UINT8, (rows, blocks, BLOCK)),
        _lazy(f"{name}.scales", scales, ir.DataType.FLOAT, (rows, blocks)),
    )


def _lazy(name: str, load: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    tensor = ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=name, cache=False)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)


def _products(weight: ir.Value) -> list[ir.Node]:
    """The nodes that multiply by a matrix: x @ weight.T, as MatMul after Transpose or as Gemm."""
    products: list[ir.Node] = []
    for node, _ in weight.uses():
        products += [user for user, _ in node.outputs[0].uses()] if node.op_type == "Transpose" else [node]
    for node in products:
        transposed = node.op_type == "Gemm" and node.attributes["transB"].as_int() == 1 and len(node.inputs) == 2
        assert node.op_type == "MatMul" or transposed, f"{weight.name}: {node.op_type} is not a plain product"
    return products


def _replace(graph: ir.Graph, product: ir.Node, stored: tuple[ir.Value, ir.Value], shape: tuple[int, ...]) -> None:
    attributes = {"N": shape[0], "K": shape[1], "bits": 8, "block_size": BLOCK, "accuracy_level": ACCURACY_LEVEL}
    node = ir.node("MatMulNBits", [product.inputs[0], *stored], attributes, domain=DOMAIN, name=product.name)
    old, new = product.outputs[0], node.outputs[0]
    new.shape, new.type = old.shape, old.type
    convenience.replace_nodes_and_values(graph, product, [product], [node], [old], [new])
