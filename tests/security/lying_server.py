"""A gRPC server that lies: it sends whatever a test sets, including bytes that are not a message."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from wire_messages import message

USAGE = {"prompt_tokens": 3, "media_tokens": 0, "completion_tokens": 2}
SUMMARY = {"finish_reason": "stop", "usage": USAGE, "seconds": {"total": 0.1}}
FIRST, TEXT = message(process="1"), message(text="an ans", output_ids=[5])
LAST = message(text="wer", output_ids=[6], summary=json.dumps(SUMMARY))

Message = service_pb2.ModelStreamInferResponse | bytes
Lie = Callable[[service_pb2.ModelInferRequest, grpc.ServicerContext], Iterator[Message]]


def whole(*messages: Message) -> Lie:
    """An answer of these messages, whatever the request."""
    return lambda request, context: iter(messages)


def raw(*outputs: tuple[str, str, list[int], bytes], contents: int | None = None, **more: Any) -> Message:
    """A message of outputs as (name, datatype, shape, content); `contents` of them come with their content."""
    response = service_pb2.ModelInferResponse(**more)
    for name, datatype, shape, content in outputs:
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(content)
    while contents is not None and len(response.raw_output_contents) > contents:
        response.raw_output_contents.pop()
    return service_pb2.ModelStreamInferResponse(infer_response=response)


def error(text: str) -> Message:
    return service_pb2.ModelStreamInferResponse(error_message=text)


def summary(**changes: Any) -> Message:
    """The last message with a changed summary; fields that are None are left out."""
    return LAST_WITH(json.dumps({name: value for name, value in (SUMMARY | changes).items() if value is not None}))


def LAST_WITH(text: str) -> Message:
    return message(text="wer", output_ids=[6], summary=text)


def silent(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Iterator[Message]:
    yield FIRST
    while context.is_active():
        time.sleep(0.02)


def endless(*messages: Message) -> Lie:
    def lie(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Iterator[Message]:
        yield FIRST
        while context.is_active():
            yield from messages

    return lie


def aborted(code: grpc.StatusCode, details: str, *before: Message) -> Lie:
    def lie(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Iterator[Message]:
        yield from before
        context.abort(code, details)

    return lie


@dataclass
class LyingServer:
    """Answers questions with `lie` and pings with `ping`; `running` counts questions still being answered."""

    lie: Lie = whole(FIRST, TEXT, LAST)
    ping: Lie = whole(FIRST)
    ready: bytes = service_pb2.ModelReadyResponse(ready=True).SerializeToString()
    address: str = ""
    running: int = 0
    asked: list[service_pb2.ModelInferRequest] = field(default_factory=list)

    def infer(
        self, requests: Iterator[service_pb2.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[Message]:
        request = next(requests)
        if any(tensor.name == "ping" for tensor in request.inputs):
            yield from self.ping(request, context)
            return
        self.asked.append(request)
        self.running += 1
        try:
            yield from self.lie(request, context)
        finally:
            self.running -= 1

    def idle(self, seconds: float = 5.0) -> bool:
        """Whether every question has ended within that time."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.running


@contextmanager
def lying() -> Iterator[LyingServer]:
    liar = LyingServer()
    handler = grpc.stream_stream_rpc_method_handler(
        liar.infer,
        request_deserializer=service_pb2.ModelInferRequest.FromString,
        response_serializer=lambda one: one if isinstance(one, bytes) else one.SerializeToString(),
    )
    ready = grpc.unary_unary_rpc_method_handler(lambda request, context: liar.ready)
    server = grpc.server(ThreadPoolExecutor(8))
    methods = {"ModelStreamInfer": handler, "ModelReady": ready}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),))
    liar.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield liar
    finally:
        server.stop(None).wait()
