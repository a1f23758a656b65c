"""A route that answers questions: it reads a request, and sends its answer whole or as server-sent events.

An ASGI application of its own: Starlette's handlers and streams, each with tasks and layers for one request, delayed the
first text by half a millisecond.
"""

import asyncio
import contextlib
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from videollama_core.protocol.errors import Cancelled, StageFailed, VideoLlamaError
from videollama_gateway.answering import Answering
from videollama_gateway.api.chat_request import ChatRequest
from videollama_gateway.api.completions import AnswerFormat
from videollama_gateway.failures import BadRequest, body_of
from videollama_gateway.request_telemetry import RequestTelemetry, Telemetry
from videollama_gateway.servers import Servers

logger = logging.getLogger(__name__)
MAX_BODY_BYTES = 768 * 2**20  # the 512 MiB of media that a request may have, in base64, and its text
_OFF_LOOP_BYTES = 2**16  # larger bodies are parsed in a thread: 20 MB of base64 take 90 ms
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
ReadRequest: TypeAlias = Callable[[Any], ChatRequest]
MakeFormat: TypeAlias = Callable[[ChatRequest, str], AnswerFormat]


class AnswerRoute:
    """
    Args:
        read: reads the JSON body of the route's API.
        make_format: makes the format of an answer, from the request and its id.
        max_body_bytes: the largest request body to accept.
    """

    def __init__(
        self,
        read: ReadRequest,
        make_format: MakeFormat,
        servers: Servers,
        telemetry: Telemetry,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._read, self._make_format, self._servers = read, make_format, servers
        self._telemetry, self._max_body_bytes = telemetry, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises: VideoLlamaError, if nothing was sent yet."""
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        request.state.request_id = request_id
        telemetry = RequestTelemetry(self._telemetry, request, request_id)
        try:
            chat_request = await self._read_request(request)
        except BaseException as error:
            telemetry.failed(_cause(error))
            raise
        telemetry.begin(chat_request.model if chat_request.model in self._servers.models else None)
        answering = Answering(self._servers, chat_request, request_id, telemetry)
        answer_format = self._make_format(chat_request, request_id)
        try:
            with _unless_disconnected(receive):
                await answering.begin()
                if chat_request.stream:
                    await send_events(answering, answer_format, request_id, send)
                    return
                await answering.finish()
            answer = answer_format.whole(await answering.answer())
            await JSONResponse(answer, 200, {"x-request-id": request_id})(scope, receive, send)
        except ClientDisconnect:
            telemetry.failed(None)
        except BaseException as error:
            telemetry.failed(_cause(error))
            raise
        finally:
            await answering.leave()

    async def _read_request(self, request: Request) -> ChatRequest:
        body = await self._read_body(request)
        small = len(body) < _OFF_LOOP_BYTES
        return _parse(body, self._read) if small else await asyncio.to_thread(_parse, body, self._read)

    async def _read_body(self, request: Request) -> bytes:
        """Raises: BadRequest (413) as soon as the body is known to be too large."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self._max_body_bytes:
                    raise self._too_large()
        except ClientDisconnect as error:
            raise Cancelled("the client disconnected before its request was complete") from error
        return bytes(body)

    def _too_large(self) -> BadRequest:
        text = f"the body is larger than the limit of {self._max_body_bytes} bytes; send less media"
        return BadRequest(text, None, 413, "too_large")


async def send_events(answering: Answering, answer_format: AnswerFormat, request_id: str, send: Send) -> None:
    """Send the event stream of an answer that has begun. Raises: ClientDisconnect."""
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-request-id", request_id.encode()),
    ]
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for event in _events(answering, answer_format):
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except OSError as error:  # raised by an ASGI server's `send` when the client has disconnected
        raise ClientDisconnect from error


async def _events(answering: Answering, answer_format: AnswerFormat) -> AsyncIterator[str]:
    """Server-sent events. An error after the first text is sent as an event, because the status is already sent."""
    try:
        yield answer_format.begin(answering.first or "")
        async for piece in answering.rest():
            yield answer_format.piece(piece)
        yield answer_format.end(await answering.answer())
    except Exception as error:
        cause = _typed(error)
        if cause is not error:
            logger.error("request failed", exc_info=error)
        answering.failed(cause)
        yield answer_format.error(body_of(cause))


@contextlib.contextmanager
def _unless_disconnected(receive: Receive) -> Iterator[None]:
    """Cancel what the block waits for, and raise ClientDisconnect, if the client disconnects.

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

    watching = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not is_gone:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        watching.cancel()


def _cause(error: BaseException) -> VideoLlamaError | None:
    """The error of a failed request; None if its client disconnected."""
    return _typed(error) if isinstance(error, Exception) else None


def _typed(error: Exception) -> VideoLlamaError:
    """Any other exception is a fault in the gateway itself."""
    if isinstance(error, VideoLlamaError):
        return error
    return StageFailed(f"internal error of the gateway: {type(error).__name__}: {error}")


def _parse(body: bytes, read: ReadRequest) -> ChatRequest:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    return read(content)
