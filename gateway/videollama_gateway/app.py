"""The HTTP application: routes, request bodies, event streams and disconnected clients."""

import asyncio
import contextlib
import json
import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from videollama_core.protocol.errors import Cancelled, StageFailed, VideoLlamaError
from videollama_core.telemetry.measures import NO_MEASURES, Measures
from videollama_core.telemetry.traces import NO_TRACER, Tracer
from videollama_gateway.answering import Answering
from videollama_gateway.api.chat_request import ChatRequest, read_chat_request
from videollama_gateway.api.completions import Completion, Form
from videollama_gateway.api.responses import ResponseForm, read_responses_request
from videollama_gateway.failures import BadRequest, body_of, headers_of, status_of
from videollama_gateway.metrics import Metrics
from videollama_gateway.page.routes import page_routes
from videollama_gateway.servers import Servers
from videollama_gateway.watch import Watch

logger = logging.getLogger(__name__)
MAX_BODY_BYTES = 768 * 2**20  # the 512 MiB of media that a request may have, in base64, and its text
_OFF_LOOP_BYTES = 2**16  # larger bodies are parsed in a thread: 20 MB of base64 take 90 ms
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def make_app(
    servers: Servers,
    max_body_bytes: int = MAX_BODY_BYTES,
    examples: Path | None = None,
    tracer: Tracer = NO_TRACER,
    measures: Measures = NO_MEASURES,
) -> Starlette:
    """Build the application; it polls the servers while it runs and closes their clients on shutdown.

    Args:
        max_body_bytes: the largest request body to accept.
        examples: folder of media files that the web page offers.
    """
    metrics = Metrics()
    gateway = Gateway(servers, metrics, tracer, measures, max_body_bytes)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await servers.start()
        try:
            yield
        finally:
            await servers.close()

    async def live(request: Request) -> Response:
        return Response(status_code=200)

    async def ready(request: Request) -> Response:
        return Response(status_code=200 if servers.is_ready else 503)

    async def exposition(request: Request) -> Response:
        return Response(metrics.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", gateway.chat, methods=["POST"]),
            Route("/v1/responses", gateway.responses, methods=["POST"]),
            Route("/v1/models", gateway.models),
            Route("/v1/models/{name:path}", gateway.model),
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/health", ready),
            Route("/metrics", exposition),
            *page_routes(examples),
        ],
        exception_handlers={VideoLlamaError: _refuse, 404: _not_found, 405: _not_found},
        lifespan=lifespan,
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, VideoLlamaError)
    headers = headers_of(error)
    if request_id := getattr(request.state, "request_id", None):
        headers["x-request-id"] = request_id
    return JSONResponse(body_of(error), status_of(error)[0], headers)


async def _not_found(request: Request, error: Exception) -> Response:
    routes = "POST /v1/chat/completions, POST /v1/responses, GET /v1/models, /health/live, /health/ready, /metrics"
    status = getattr(error, "status_code", 404)
    text = f"there is no route {request.method} {request.url.path[:80]}; the routes are {routes}"
    return JSONResponse(body_of(BadRequest(text, None, status, "not_found")), status)


class Gateway:
    """The handlers of the API routes."""

    def __init__(
        self, servers: Servers, metrics: Metrics, tracer: Tracer, measures: Measures, max_body_bytes: int
    ) -> None:
        self._servers, self._metrics, self._tracer, self._measures = servers, metrics, tracer, measures
        self._max_body_bytes = max_body_bytes

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in self._servers.models]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._servers.models:
            raise BadRequest(f"the model {name!r} does not exist", "model", 404, "model_not_found")
        return JSONResponse(_model(name))

    async def chat(self, request: Request) -> Response:
        return await self._answer(
            request,
            read_chat_request,
            lambda chat_request, request_id: Completion(request_id, chat_request.model, chat_request.include_usage),
        )

    async def responses(self, request: Request) -> Response:
        return await self._answer(
            request,
            read_responses_request,
            lambda chat_request, request_id: ResponseForm(request_id, chat_request.model),
        )

    async def _answer(
        self, request: Request, read: Callable[[Any], ChatRequest], form_of: Callable[[ChatRequest, str], Form]
    ) -> Response:
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request.state.request_id = request_id
        watch = Watch(self._metrics, self._tracer, request, request_id, self._measures)
        try:
            chat_request = await self._read(request, read)
        except BaseException as error:
            watch.failed(_cause(error))
            raise
        watch.begin(chat_request.model if chat_request.model in self._servers.models else None)
        answering = Answering(self._servers, chat_request, request_id, watch)
        try:
            with _unless_disconnected(request.receive):
                await answering.begin()
            form = form_of(chat_request, request_id)
            headers = {"x-request-id": request_id}
            if chat_request.stream:
                return _EventStream(answering, form, headers | {"cache-control": "no-cache"})
            with _unless_disconnected(request.receive):
                await answering.finish()
            return JSONResponse(form.whole(await answering.answer()), 200, headers)
        except BaseException as error:
            watch.failed(_cause(error))
            await answering.leave()
            raise

    async def _read(self, request: Request, read: Callable[[Any], ChatRequest]) -> ChatRequest:
        body = await self._read_body(request)
        small = len(body) < _OFF_LOOP_BYTES
        return _parse(body, read) if small else await asyncio.to_thread(_parse, body, read)

    async def _read_body(self, request: Request) -> bytes:
        """Raises: BadRequest (413) as soon as the body is known to be too large."""
        too_large = BadRequest(
            f"the body is larger than the limit of {self._max_body_bytes} bytes; send less media",
            None,
            413,
            "too_large",
        )
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self._max_body_bytes:
                    raise too_large
        except ClientDisconnect as error:
            raise Cancelled("the client disconnected before its request was complete") from error
        return bytes(body)


def _cause(error: BaseException) -> VideoLlamaError | None:
    """The error of a failed request; None if its client disconnected."""
    return _typed(error) if isinstance(error, Exception) else None


def _typed(error: Exception) -> VideoLlamaError:
    """Any other exception is a fault in the gateway itself."""
    if isinstance(error, VideoLlamaError):
        return error
    return StageFailed(f"internal error of the gateway: {type(error).__name__}: {error}")


async def _events(answering: Answering, form: Form) -> AsyncIterator[str]:
    """Server-sent events. An error after the first text is sent as an event, because the status is already sent."""
    try:
        yield form.begin(answering.first or "")
        async for piece in answering.rest():
            yield form.piece(piece)
        yield form.end(await answering.answer())
    except Exception as error:
        cause = _typed(error)
        if cause is not error:
            logger.error("request failed", exc_info=error)
        answering.failed(cause)
        yield form.error(body_of(cause))


class _EventStream(StreamingResponse):
    """The event stream of an answer. However it ends, even before its first event, the request's slot is released.

    Starlette's own implementation starts two anyio tasks first, which delayed the first event by 0.3 ms.
    """

    def __init__(self, answering: Answering, form: Form, headers: dict[str, str]) -> None:
        super().__init__(_events(answering, form), 200, headers, "text/event-stream")
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(Cancelled), _unless_disconnected(receive):
                await self.stream_response(send)
        except OSError as error:  # raised by `send` of an ASGI server when the client has disconnected
            raise ClientDisconnect from error
        finally:
            self._answering.failed(None)  # no effect after an answer or an error; otherwise the client disconnected
            await self._answering.leave()


@contextlib.contextmanager
def _unless_disconnected(receive: Receive) -> Iterator[None]:
    """Cancel what the block waits for, and raise Cancelled, if the client disconnects.

    The block runs in the request's own task: a task for it would delay the first text by 0.1 ms.
    """
    task, is_gone = asyncio.current_task(), False
    assert task is not None

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not is_gone:
            raise
        task.uncancel()
        raise Cancelled("the client disconnected") from None
    finally:
        watching.cancel()


def _parse(body: bytes, read: Callable[[Any], ChatRequest]) -> ChatRequest:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    return read(content)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "videollama2-service"}
