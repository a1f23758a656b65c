"""A request to a stage as Triton's ModelInferRequest, serialised."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
from tritonclient.grpc import service_pb2

from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.tensors import Stage

_DTYPES = {
    "BOOL": np.bool_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
}
_RAW_CONTENTS = b"\x3a"  # protobuf's tag of ModelInferRequest.raw_input_contents: field 7, with a length


def request_message(
    stage: Stage,
    arrays: Mapping[str, np.ndarray],
    outputs: Iterable[str],
    request_id: str,
    parameters: Mapping[str, str],
) -> bytes:
    """Put together of messages of protobuf, which one after the other are one message: most of them are the same for every
    request, and tensors, which may be large, are copied once and not three times.

    Args:
        arrays: contiguous, in the types of the contract; FP16 may stand for FP32.
    """
    own = service_pb2.ModelInferRequest(id=request_id)
    for name, text in parameters.items():
        own.parameters[name].string_param = text
    heads = [_begin(stage.name, tuple(outputs)), own.SerializeToString()]
    data: list[bytes | memoryview] = []
    for name, array in arrays.items():
        datatype = "FP16" if array.dtype == np.float16 else stage.input(name).wire_dtype
        heads.append(_head(name, datatype, array.shape))
        data += [_RAW_CONTENTS, _varint(array.nbytes), array.data]
    return b"".join((*heads, *data))


def read_message(stage: Stage, message: bytes) -> tuple[str, dict[str, str], dict[str, np.ndarray | None]]:
    """What `request_message` made.

    Returns: request id; parameters; arrays of all inputs of the contract, None for an optional one that is absent.
    Raises: InvalidRequest if a tensor is missing, or its shape is not the contract's.
    """
    request = service_pb2.ModelInferRequest.FromString(message)
    arrays: dict[str, np.ndarray | None] = {}
    for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True):
        stage.check_input(tensor.name, tensor.shape)
        values = np.frombuffer(data, _DTYPES[tensor.datatype])
        arrays[tensor.name] = values.reshape(tensor.shape).copy()  # writable, and without the message behind it
    for wanted in stage.inputs:
        if arrays.setdefault(wanted.name, None) is None and not wanted.optional:
            raise InvalidRequest(f"tensor {wanted.name} is missing; it holds: {wanted.meaning}")
    return request.id, {name: value.string_param for name, value in request.parameters.items()}, arrays


@lru_cache
def _begin(stage: str, outputs: tuple[str, ...]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=stage)
    for name in outputs:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


@lru_cache
def _head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """A tensor without its data."""
    request = service_pb2.ModelInferRequest()
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return bytes(request.SerializeToString())


def _varint(number: int) -> bytes:
    """As protobuf writes a length."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes((*found, number))
