"""Admit a serialized ModelInferRequest: check it against the contract and its limits before it is forwarded to Triton.

Tensor data is never decoded: the message is walked field by field, and only the rest of it is parsed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from videollama_core.protocol import contract, limits
from videollama_core.protocol.errors import (
    InvalidRequest,
    NotAllowed,
    ServerUnreachable,
    StageRestarting,
    VideoLlamaError,
)
from videollama_core.protocol.tensors import Stage
from videollama_core.protocol.trace_context import RESERVED
from videollama_server.endpoint.api_keys import Caller
from videollama_server.endpoint.state import State

_RAW = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf
_LENGTH_BYTES = 4  # length prefix of each string of a tensor
_MOST_BYTES = {  # of all strings of a tensor, where the contract limits their content
    contract.QUESTION.name: limits.QUESTION_CHARACTERS.value * 4,
    contract.MESSAGES.name: limits.MESSAGES_BYTES.value,
    contract.STOP.name: limits.STOP_STRINGS.value * limits.STOP_CHARACTERS.value * 4,
}
_STOPPING = "the server is shutting down; send the request to another server, or to this one when it runs again"


@dataclass(frozen=True)
class CheckedRequest:
    """The facts that the endpoint needs about a request."""

    model: str
    is_ping: bool
    has_media: bool


def admit(message: bytes, exposed: Collection[str], caller: Caller, state: State) -> CheckedRequest:
    """Check a serialized ModelInferRequest and count its start, whose end `caller.leave` counts.

    Args:
        exposed: models that callers may use.
    Raises: the error that refuses the request, which is counted: an invalid request, a model that is not exposed, a limit
        of the caller, a server that stops or is started again.
    """
    try:
        checked = check_request(message, exposed)
        if not state.supervisor.accepts:
            raise restarting() if state.supervisor.restarts else ServerUnreachable(_STOPPING)
        caller.enter(checked.is_ping)
    except VideoLlamaError as error:
        state.refused(error)
        raise
    return checked


def restarting() -> StageRestarting:
    """The error for requests to a server that is restarting."""
    return StageRestarting("the server is being started again; send the request again")


def check_request(message: bytes, exposed: Collection[str]) -> CheckedRequest:
    """Check a serialized ModelInferRequest.

    Args:
        exposed: models that callers may use.
    Raises: NotAllowed for any other model; InvalidRequest for a tensor that violates the contract.
    """
    request, sizes = _read(message)
    if request.model_name not in exposed:
        raise NotAllowed(f"{request.model_name[:99]!r} is not offered here; use {' or '.join(exposed)}")
    limits.REQUEST_ID_CHARACTERS.check(len(request.id), "the request id")
    if request.id and not request.id.isprintable():
        raise InvalidRequest("the request id holds characters that are not printable; use printable ones")
    for name in RESERVED:
        if name in request.parameters:  # where Triton also puts headers
            raise NotAllowed(f"the parameter {name} is reserved for the server; leave it out")
    stage = contract.STAGES[request.model_name]
    names: set[str] = set()
    for index, tensor in enumerate(request.inputs):
        if tensor.name in names:
            raise InvalidRequest(f"{tensor.name[:99]} is given twice; send it once")
        names.add(tensor.name)
        if sizes:
            size = sizes[index]
            if tensor.HasField("contents"):
                raise InvalidRequest(
                    f"{tensor.name[:99]} has its data both in contents and in raw_input_contents; send only one of them"
                )
        else:
            size = _inline_bytes(tensor)
        _check_tensor(stage, tensor, size)
    if any("shared_memory_region" in output.parameters for output in request.outputs):
        raise NotAllowed("shared memory is not offered here; send and receive tensors inside the messages")
    given = [output.name for output in stage.outputs]
    if unknown := [output.name for output in request.outputs if output.name not in given]:
        raise InvalidRequest(f"{stage.name} has no output {unknown[0][:99]!r}; it gives {', '.join(given)}")
    return CheckedRequest(request.model_name, names == {contract.PING.name}, contract.MEDIA_KIND.name in names)


def _check_tensor(stage: Stage, tensor: service_pb2.ModelInferRequest.InferInputTensor, size: int) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise NotAllowed("shared memory is not offered here; send and receive tensors inside the messages")
    datatype, data_bytes = tensor.datatype, size
    if datatype == "FP16" and stage.input(tensor.name).dtype == "FP32":  # media tokens of an engine in half precision
        datatype, data_bytes = "FP32", size * 2
    stage.check_input(tensor.name, tensor.shape, datatype, data_bytes)
    most = _MOST_BYTES.get(tensor.name)
    if datatype == "BYTES" and most is not None and size > most + _LENGTH_BYTES * prod(tensor.shape):
        raise InvalidRequest(f"{tensor.name} has {size} bytes; the limit is {most}")


def _inline_bytes(tensor: service_pb2.ModelInferRequest.InferInputTensor) -> int:
    """The size in bytes that the data would have in raw_input_contents."""
    contents = tensor.contents
    strings = contents.bytes_contents
    if strings:
        return sum(map(len, strings)) + _LENGTH_BYTES * len(strings)
    sizes = {
        "BOOL": len(contents.bool_contents),
        "INT32": len(contents.int_contents) * 4,
        "INT64": len(contents.int64_contents) * 8,
        "UINT8": len(contents.uint_contents),
        "UINT64": len(contents.uint64_contents) * 8,
        "FP32": len(contents.fp32_contents) * 4,
        "FP64": len(contents.fp64_contents) * 8,
    }
    return sizes.get(tensor.datatype, 0)


def _read(message: bytes) -> tuple[service_pb2.ModelInferRequest, list[int]]:
    """Return the request without its raw_input_contents, and the size of each in bytes. Raises: InvalidRequest."""
    kept, sizes, envelope_bytes = [], [], 0
    position, count, total = 0, 0, len(message)
    try:
        while position < total:
            begin, count = position, count + 1
            if count > limits.REQUEST_FIELDS.value:
                limits.REQUEST_FIELDS.check(count, "the request")
            tag, position = _varint(message, position)
            position, length = _end_of_value(message, position, tag & 7)
            if tag >> 3 == _RAW and length >= 0:
                sizes.append(length)
                continue
            envelope_bytes += position - begin
            if envelope_bytes > limits.ENVELOPE_BYTES.value:
                limits.ENVELOPE_BYTES.check(
                    envelope_bytes, "the request beside raw_input_contents (send tensors in those)"
                )
            kept.append(message[begin:position])
        request = service_pb2.ModelInferRequest.FromString(b"".join(kept))
    except (DecodeError, IndexError, UnicodeDecodeError) as error:
        raise InvalidRequest("the message is not a ModelInferRequest") from error
    if sizes and len(sizes) != len(request.inputs):
        raise InvalidRequest(
            f"{len(request.inputs)} inputs have {len(sizes)} raw_input_contents; wanted one for each input"
        )
    return request, sizes


def _end_of_value(message: bytes, position: int, kind: int) -> tuple[int, int]:
    """Return where the value of a field ends, and its length, -1 for other wire types than bytes.

    Raises: DecodeError, IndexError if it is malformed.
    """
    length = -1
    if kind == _BYTES:
        length, position = _varint(message, position)
        position += length
    elif kind == _VARINT:
        _, position = _varint(message, position)
    elif kind == _FIXED64:
        position += 8
    elif kind == _FIXED32:
        position += 4
    else:
        raise DecodeError(f"wire type {kind}")
    if position > len(message):
        raise DecodeError("a field extends past the end of the message")
    return position, length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = message[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("a varint has more than ten bytes")
