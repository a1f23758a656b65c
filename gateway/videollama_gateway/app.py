"""The HTTP application: its routes, and how it answers errors."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from videollama_core.protocol.errors import VideoLlamaError
from videollama_gateway.answer_route import MAX_BODY_BYTES, AnswerRoute, MakeFormat, ReadRequest
from videollama_gateway.api.chat_request import read_chat_request
from videollama_gateway.api.completions import CompletionFormat
from videollama_gateway.api.responses import ResponsesFormat, read_responses_request
from videollama_gateway.failures import BadRequest, body_of, headers_of, status_of
from videollama_gateway.page.routes import page_routes
from videollama_gateway.request_telemetry import Telemetry
from videollama_gateway.servers import Servers


def make_app(
    servers: Servers, telemetry: Telemetry, max_body_bytes: int = MAX_BODY_BYTES, examples: Path | None = None
) -> Starlette:
    """Build the application; it polls the servers while it runs and closes their clients on shutdown.

    Args:
        max_body_bytes: the largest request body to accept.
        examples: folder of media files that the web page offers.
    """

    def answers(read: ReadRequest, make_format: MakeFormat) -> AnswerRoute:
        return AnswerRoute(read, make_format, servers, telemetry, max_body_bytes)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await servers.start()
        try:
            yield
        finally:
            await servers.close()

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in servers.models]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        servers.check_model(name)
        return JSONResponse(_model(name))

    async def live(request: Request) -> Response:
        return Response(status_code=200)

    async def ready(request: Request) -> Response:
        return Response(status_code=200 if servers.is_ready else 503)

    async def exposition(request: Request) -> Response:
        return Response(telemetry.metrics.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", answers(read_chat_request, CompletionFormat), methods=["POST"]),
            Route("/v1/responses", answers(read_responses_request, ResponsesFormat), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
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
    headers = getattr(error, "headers", None)  # Allow, with 405
    return JSONResponse(body_of(BadRequest(text, None, status, "not_found")), status, headers)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "videollama2-service"}
