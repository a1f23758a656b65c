"""What forward.py and infer_stream.py say to callers by themselves."""

from collections.abc import Collection
from typing import NoReturn, TypeAlias

import grpc
from tritonclient.grpc import service_pb2

from videollama_core.protocol.errors import NotAllowed, Overloaded, ServerUnreachable, StageRestarting, VideoLlamaError
from videollama_core.protocol.trace_context import MEASURED, TRACEPARENT, YES, checked_traceparent

Context: TypeAlias = grpc.aio.ServicerContext
_NO_TRITON = "Triton does not answer; it is being started again, or stops"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_EXTENSIONS = {"model_configuration", "parameters"}  # of KServe's protocol and Triton's
_STATUS = {
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ServerUnreachable: grpc.StatusCode.UNAVAILABLE,
}


def stopping() -> ServerUnreachable:
    return ServerUnreachable("the server is shutting down; ask another, or this one when it runs again")


def restarting() -> StageRestarting:
    return StageRestarting("the server is being started again; send the request again")


def header(context: Context, name: str) -> str:
    """A header of a call; "" where it did not come, or is not text."""
    found = next((value for key, value in context.invocation_metadata() or () if key == name), "")
    return found if isinstance(found, str) else ""


def traceparent_of(context: Context) -> str | None:
    """Of the caller's trace; None where it came in no form that W3C knows, or not at all."""
    return checked_traceparent(header(context, TRACEPARENT))


def measured_of(context: Context) -> str | None:
    """YES where the caller sends the request's metrics; None for anything else."""
    return YES if header(context, MEASURED) == YES else None


def offered_extensions(message: bytes, with_statistics: bool) -> bytes:
    """Of a ServerMetadataResponse those that callers are offered: tools ask for what a server says that it has."""
    found = service_pb2.ServerMetadataResponse.FromString(message)
    offered = _EXTENSIONS | ({"statistics"} if with_statistics else set())
    kept = [extension for extension in found.extensions if extension in offered]
    found.ClearField("extensions")
    found.extensions.extend(kept)
    return bytes(found.SerializeToString())


def offered_config(message: bytes, exposed: Collection[str]) -> bytes:
    """A ModelConfigResponse without steps that callers may not ask about: it is one model to them."""
    found = service_pb2.ModelConfigResponse.FromString(message)
    if all(step.model_name in exposed for step in found.config.ensemble_scheduling.step):
        return message
    found.config.ClearField("ensemble_scheduling")
    found.config.ClearField("platform")
    return bytes(found.SerializeToString())


async def abort(context: Context, error: VideoLlamaError) -> NoReturn:
    """End a call with one of our errors."""
    await context.abort(_STATUS.get(type(error), grpc.StatusCode.INVALID_ARGUMENT), error.to_wire())
    raise AssertionError("abort returned")


async def pass_on(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    """End a call as Triton ended it."""
    await abort_as(context, error.code().value[0], error.details() or "")


async def abort_as(context: Context, status: int, details: str) -> NoReturn:
    """The same by gRPC's number of a status; where Triton's socket lies is nobody's business."""
    code = _CODES.get(status, grpc.StatusCode.UNKNOWN)
    await context.abort(code, _NO_TRITON if "unix:" in details else details)
    raise AssertionError("abort returned")


async def one_message(context: Context) -> bytes:
    """The one message of a call that is no stream."""
    message = await context.read()
    if message is grpc.aio.EOF:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest: the call came without a message")
    return bytes(message)
