"""The gRPC channel and its errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_core.protocol.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ServerUnreachable,
    VideoLlamaError,
    from_wire,
)

# Media is larger than gRPC's default limit of 4 MiB; the server allows 2 GiB - 1.
CHANNEL_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def open_channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(check_address(address), options=CHANNEL_OPTIONS)


def open_async_channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(check_address(address), options=CHANNEL_OPTIONS)


def check_address(address: str) -> str:
    """Raises: InvalidRequest unless it is host:port."""
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdigit():
        raise InvalidRequest(
            f"the address is {address!r}; wanted host:port of the server's gRPC port, such as localhost:8001"
        )
    return address


Stub = service_pb2_grpc.GRPCInferenceServiceStub
READY = service_pb2.ModelReadyRequest


def translate(error: grpc.RpcError, address: str) -> VideoLlamaError:
    """A gRPC failure as one of ours."""
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE:
        return ServerUnreachable(
            f"no server answers at {address} ({details}); start one with vl2 serve, or name another with --url"
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the timeout passed before the answer was whole; allow more seconds or fewer tokens")
    if code == grpc.StatusCode.CANCELLED:
        return Cancelled("the request was cancelled")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return InvalidRequest(f"the request is too large for the server: {details}")
    return from_wire(details)


@contextmanager
def translated(address: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise translate(error, address) from error
    except (ValueError, grpc.aio.UsageError) as error:  # what grpc raises for a call on a closed channel
        if "closed" not in str(error):
            raise
        raise InvalidRequest(f"this client of {address} was closed; open another ({error})") from error
