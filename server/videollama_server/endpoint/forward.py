"""The gRPC service: which calls are offered, and how they are forwarded to Triton. Messages stay serialized."""

from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import NotAllowed, VideoLlamaError
from videollama_server.endpoint.answers import (
    Context,
    abort,
    headers_of,
    offered_config,
    offered_extensions,
    one_message,
    pass_on,
)
from videollama_server.endpoint.api_keys import ApiKeys, Caller
from videollama_server.endpoint.infer_stream import InferStream
from videollama_server.endpoint.request_checks import admit
from videollama_server.endpoint.state import State
from videollama_server.http2.channel import Channel

_SERVICE = "/inference.GRPCInferenceService/"
_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # grpc.health.v1.HealthCheckResponse
_ASK_SECONDS = 5.0  # timeout of calls about the server or a model, which Triton answers
_WATCH_SECONDS = 2.0

_Answer = Callable[[Caller, Context], Awaitable[None]]


class Forwarder(grpc.GenericRpcHandler):
    """Handles every call as a stream of bytes, so that a caller is authenticated before any message is read.

    Args:
        streams: the channel that carries questions to Triton and answers back.
        exposed: models that callers may use.
        with_statistics: whether Triton's statistics are offered.
    """

    def __init__(
        self,
        triton: grpc.aio.Channel,
        streams: Channel,
        state: State,
        keys: ApiKeys,
        exposed: Collection[str],
        with_statistics: bool,
    ) -> None:
        self._state, self._keys, self._exposed = state, keys, exposed
        self._triton = triton
        self._infer, self._model_ready = self._call("ModelInfer"), self._call("ModelReady")
        self._streams = streams
        answers: dict[str, _Answer] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._ask(
                "ServerMetadata", filtered=lambda response: offered_extensions(response, with_statistics)
            ),
            "ModelReady": self._is_model_ready,
            "ModelInfer": self._infer_once,
            "ModelStreamInfer": self._infer_stream,
        }
        answers["ModelMetadata"] = self._ask("ModelMetadata", of_model=True)
        answers["ModelConfig"] = self._ask("ModelConfig", True, lambda response: offered_config(response, exposed))
        if with_statistics:  # every model is exposed then; a single call may ask for all of them
            answers["ModelStatistics"] = self._ask("ModelStatistics")
        handlers = {_SERVICE + name: self._authenticated(answer) for name, answer in answers.items()}
        handlers[_HEALTH] = self._check_health
        self._handlers = {method: grpc.stream_stream_rpc_method_handler(handle) for method, handle in handlers.items()}
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handlers.get(details.method, self._refusal)

    def _call(self, name: str) -> Any:
        return self._triton.unary_unary(_SERVICE + name)

    def _authenticated(self, answer: _Answer) -> Callable[[Any, Context], Awaitable[None]]:
        """Wrap a handler so that it is called only with a valid API key."""

        async def handle(_: Any, context: Context) -> None:
            try:
                caller = self._keys.find(headers_of(context).get("authorization", ""))
            except NotAllowed as error:
                self._state.refused(error)
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.to_wire())
            await answer(caller, context)

        return handle

    async def _infer_stream(self, caller: Caller, context: Context) -> None:
        await InferStream(self._streams, context, caller, self._state, self._exposed).run()

    async def _infer_once(self, caller: Caller, context: Context) -> None:
        message = await one_message(context)
        try:
            checked = admit(message, self._exposed, caller, self._state)
        except VideoLlamaError as error:
            await abort(context, error)
        self._state.pending += 1
        try:
            await context.write(await self._infer(message))
        except grpc.aio.AioRpcError as error:
            await pass_on(context, error)
        finally:
            self._state.pending -= 1
            caller.leave(checked.is_ping)

    def _ask(
        self, name: str, of_model: bool = False, filtered: Callable[[bytes], bytes] = lambda response: response
    ) -> _Answer:
        """A handler that forwards a unary call to Triton; `filtered` turns its response into the caller's."""
        call = self._call(name)

        async def answer(_: Caller, context: Context) -> None:
            message = await one_message(context)
            if of_model:
                await self._model_of(message, context)
            try:
                await context.write(filtered(await call(message, timeout=_ASK_SECONDS)))
            except grpc.aio.AioRpcError as error:
                await pass_on(context, error)

        return answer

    async def _model_of(self, message: bytes, context: Context) -> str:
        """The model that a call is about. All these requests have the name in the same field as ModelReadyRequest."""
        try:
            name: str = service_pb2.ModelReadyRequest.FromString(message).name
        except DecodeError:
            name = ""
        if name not in self._exposed:
            error = NotAllowed(f"{name[:99]!r} is not offered here; ask about {' or '.join(self._exposed)}")
            await abort(context, error)
        return name

    async def _server_live(self, _: Caller, context: Context) -> None:
        await one_message(context)
        await context.write(service_pb2.ServerLiveResponse(live=True).SerializeToString())

    async def _server_ready(self, _: Caller, context: Context) -> None:
        await one_message(context)
        await context.write(service_pb2.ServerReadyResponse(ready=not self._state.not_ready).SerializeToString())

    async def _is_model_ready(self, _: Caller, context: Context) -> None:
        message = await one_message(context)
        ready = not self._state.not_ready
        if await self._model_of(message, context) != ENTRY.name and ready:
            try:
                await context.write(await self._model_ready(message, timeout=_ASK_SECONDS))
            except grpc.aio.AioRpcError as error:
                await pass_on(context, error)
            return
        await context.write(service_pb2.ModelReadyResponse(ready=ready).SerializeToString())

    async def _check_health(self, _: Any, context: Context) -> None:
        """Answer health probes, which have no API key."""
        await one_message(context)
        await context.write(_NOT_SERVING if self._state.not_ready else _SERVING)

    async def watch_triton(self) -> None:
        """Check once whether Triton itself answers, and record it in the state."""
        message = service_pb2.ModelReadyRequest(name=ENTRY.name).SerializeToString()
        try:
            response = await self._model_ready(message, timeout=_WATCH_SECONDS)
            self._state.triton_answers = service_pb2.ModelReadyResponse.FromString(response).ready
        except grpc.aio.AioRpcError:
            self._state.triton_answers = False


async def _refuse(_: Any, context: Context) -> None:
    """Refuse an unknown call without reading its message."""
    await abort(
        context,
        NotAllowed(
            "this call is not offered here; use ModelStreamInfer or ModelInfer, or the health and metadata calls"
        ),
    )
