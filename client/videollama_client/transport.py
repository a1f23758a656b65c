"""Translate gRPC errors into this project's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_core.protocol.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotAllowed,
    Overloaded,
    ServerUnreachable,
    StageFailed,
    VideoLlamaError,
    from_wire,
    printable,
)

READY = service_pb2.ModelReadyRequest
_CANCELLED_HERE = ("Locally cancelled by application!", "Channel closed!")  # gRPC's details
NOT_READY = "no server is ready at {} after {:g} s; start one with vl2 serve"


class Stub(service_pb2_grpc.GRPCInferenceServiceStub):
    """The server's RPCs; `ask` is ModelStreamInfer called with a single request.

    A request stream of one message would cost another thread, and milliseconds before the first text.
    """

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)
        self.ask: Any = channel.unary_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )


def translate(error: grpc.RpcError, address: str) -> VideoLlamaError:
    """Return the project's error for a gRPC error of the server at `address`."""
    code, details = error.code(), printable(error.details() or "")
    if code == grpc.StatusCode.CANCELLED and details in _CANCELLED_HERE:
        return Cancelled("the request was cancelled")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):  # the latter by a server that is stopped
        return ServerUnreachable(
            f"no server answers at {address} ({details}); start one with vl2 serve, or name another with --url"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the timeout passed before the answer was complete; allow more seconds or fewer tokens")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "CLIENT: Received message larger" in details:
            return StageFailed(f"the server's answer cannot be read: it is too large ({details})")
        if "larger than max" in details:
            return InvalidRequest(f"the request is too large for the server: {details}")
        reported = from_wire(details)
        if isinstance(reported, Overloaded):
            return reported
        return Overloaded(details or "the server accepts no more requests now; send this one again later")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        reported = from_wire(details)
        return (
            reported
            if isinstance(reported, NotAllowed)
            else NotAllowed(f"the server at {address} refuses the call: {details}")
        )
    reported = from_wire(details)
    if type(reported) is StageFailed:  # also what from_wire makes of foreign text
        return StageFailed(f"the server at {address} failed ({code.name}): {details or 'it gives no reason'}")
    return reported


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Raise the project's errors in place of gRPC's inside the block."""
    try:
        yield
    except grpc.RpcError as error:
        raise translate(error, address) from error
    except (ValueError, grpc.aio.UsageError) as error:  # what grpc raises for a call on a closed channel
        if "closed" not in str(error):
            raise
        raise InvalidRequest(f"this client of {address} was closed; open another ({error})") from error
