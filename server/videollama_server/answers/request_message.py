"""A request to a stage as Triton's ModelInferRequest, serialized."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
from tritonclient.grpc import service_pb2

from videollama_core.protocol.tensors import Stage

_RAW_CONTENTS = b"\x3a"  # protobuf's tag of ModelInferRequest.raw_input_contents: field 7, with a length


def request_message(
    stage: Stage,
    arrays: Mapping[str, np.ndarray],
    outputs: Iterable[str],
    request_id: str,
    parameters: Mapping[str, str],
) -> bytes:
    """Return a serialized ModelInferRequest.

    It is a concatenation of protobuf messages, which is itself one message: most parts are the same for every request and are
    cached, and tensors, which may be large, are copied once instead of three times.

    Args:
        arrays: by input name; contiguous, with the contract's types, except that FP16 may replace FP32.
        outputs: names of the requested outputs.
    """
    request = service_pb2.ModelInferRequest(id=request_id)
    for name, text in parameters.items():
        request.parameters[name].string_param = text
    heads = [_begin(stage.name, tuple(outputs)), request.SerializeToString()]
    data: list[bytes | memoryview] = []
    for name, array in arrays.items():
        datatype = "FP16" if array.dtype == np.float16 else stage.input(name).wire_dtype
        heads.append(_head(name, datatype, array.shape))
        data += [_RAW_CONTENTS, _varint(array.nbytes), array.data]
    return b"".join((*heads, *data))


@lru_cache
def _begin(stage: str, outputs: tuple[str, ...]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=stage)
    for name in outputs:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


@lru_cache
def _head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """Return the part that declares a tensor, without its data."""
    request = service_pb2.ModelInferRequest()
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return bytes(request.SerializeToString())


def _varint(number: int) -> bytes:
    """Encode a length as a protobuf varint."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes((*encoded, number))
