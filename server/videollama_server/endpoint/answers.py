"""Answers of the endpoint's own, for forward.py and infer_stream.py: errors, filtered metadata and call status."""

from collections.abc import Collection, Mapping
from typing import NoReturn, TypeAlias

import grpc
from tritonclient.grpc import service_pb2

from videollama_core.protocol.errors import NotAllowed, Overloaded, ServerUnreachable, VideoLlamaError
from videollama_core.protocol.trace_context import MEASURED, TRACEPARENT, YES, checked_traceparent

Context: TypeAlias = grpc.aio.ServicerContext
_NO_TRITON = "Triton does not answer; it is restarting or stopping; send the request again"
ERROR_CODES = "triton_grpc_error"  # Triton's header: errors end the call with their gRPC status code
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_EXTENSIONS = {"model_configuration", "parameters"}  # of KServe's protocol and Triton's
_STATUS = {
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ServerUnreachable: grpc.StatusCode.UNAVAILABLE,
}


def headers_of(context: Context) -> dict[str, str]:
    """The headers of a call that hold text; of several with one name, the first."""
    headers: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            headers.setdefault(name, value)
    return headers


def forwarded(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Those of a caller's headers that Triton is sent."""
    known = {
        ERROR_CODES: headers.get(ERROR_CODES),
        TRACEPARENT: checked_traceparent(headers.get(TRACEPARENT)),
        MEASURED: YES if headers.get(MEASURED) == YES else None,
    }
    return tuple((name, value) for name, value in known.items() if value)


def offered_extensions(message: bytes, with_statistics: bool) -> bytes:
    """Remove the extensions that are not offered from a ServerMetadataResponse, because tools use those it lists."""
    response = service_pb2.ServerMetadataResponse.FromString(message)
    offered = _EXTENSIONS | ({"statistics"} if with_statistics else set())
    kept = [extension for extension in response.extensions if extension in offered]
    response.ClearField("extensions")
    response.extensions.extend(kept)
    return bytes(response.SerializeToString())


def offered_config(message: bytes, exposed: Collection[str]) -> bytes:
    """Remove the ensemble's steps from a ModelConfigResponse if callers may not use them: to callers it is one model."""
    response = service_pb2.ModelConfigResponse.FromString(message)
    if all(step.model_name in exposed for step in response.config.ensemble_scheduling.step):
        return message
    response.config.ClearField("ensemble_scheduling")
    response.config.ClearField("platform")
    return bytes(response.SerializeToString())


async def abort(context: Context, error: VideoLlamaError) -> NoReturn:
    """End a call with one of the project's errors."""
    await context.abort(_STATUS.get(type(error), grpc.StatusCode.INVALID_ARGUMENT), error.to_wire())
    raise AssertionError("abort returned")


async def pass_on(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    """End a call with the status that Triton's call ended with."""
    await abort_as(context, error.code().value[0], error.details() or "")


async def abort_as(context: Context, status: int, details: str) -> NoReturn:
    """End a call with a gRPC status number, without revealing the path of Triton's socket."""
    code = _CODES.get(status, grpc.StatusCode.UNKNOWN)
    await context.abort(code, _NO_TRITON if "unix:" in details else details)
    raise AssertionError("abort returned")


async def one_message(context: Context) -> bytes:
    """Read the single message of a unary call."""
    message = await context.read()
    if message is grpc.aio.EOF:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest: the call has no message; send one")
    return bytes(message)
