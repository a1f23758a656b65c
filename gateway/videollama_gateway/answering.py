"""One request on its way through the servers: which server handles it, and failover when that server is lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from videollama_client.client_async import AsyncAnswerStream
from videollama_client.request_state import RESEND_SECONDS, RESTART_SECONDS
from videollama_core.protocol.errors import ServerUnreachable, StageRestarting, VideoLlamaError
from videollama_gateway.api.chat_request import ChatRequest
from videollama_gateway.request_telemetry import RequestTelemetry
from videollama_gateway.servers import Server, Servers


class Answering:
    """One active request. If its server is lost before the first text, it is sent to another server."""

    def __init__(
        self, servers: Servers, chat_request: ChatRequest, request_id: str, telemetry: RequestTelemetry
    ) -> None:
        self._servers, self._chat_request, self._telemetry = servers, chat_request, telemetry
        self._identity: Any = {
            "request_id": request_id,
            "traceparent": telemetry.traceparent,
            "measured": telemetry.is_measured,
            "media_digest": chat_request.media_digest,
        }
        self._stream: AsyncAnswerStream | None = None
        self._pieces: AsyncIterator[str] | None = None
        self._server: Server | None = None
        self.first: str | None = None

    async def begin(self) -> None:
        """Wait until the first text has arrived, or the complete answer if it has no text. Raises: VideoLlamaError."""
        deadline, last_error = time.monotonic() + RESTART_SECONDS, None
        while True:
            try:
                server = self._servers.in_order(self._chat_request.model, self._chat_request.media_digest)[0]
                await self._begin_at(server)
                return
            except (ServerUnreachable, StageRestarting) as error:
                if self._server is None:  # no server is ready; one that this request has just lost may be restarting
                    if last_error is None or time.monotonic() > deadline:
                        raise last_error or error from error
                    await asyncio.sleep(RESEND_SECONDS)
                    continue
                self._server.ready = False  # until the next poll
                await self.leave()
                if time.monotonic() > deadline:
                    raise
                last_error = error

    async def _begin_at(self, server: Server) -> None:
        self._server = server
        server.running += 1
        self._stream = server.client.stream(self._chat_request.messages, **self._identity, **self._chat_request.options)
        self._pieces = aiter(self._stream)
        self.first = await anext(self._pieces, None)
        if self.first is not None:
            self._telemetry.first_text()

    async def rest(self) -> AsyncIterator[str]:
        """Yield the pieces of text after the first."""
        assert self._pieces is not None
        async for piece in self._pieces:
            yield piece

    async def finish(self) -> None:
        """Read the answer to its end."""
        async for _ in self.rest():
            pass

    async def answer(self) -> Any:
        """Return the complete answer, after `rest` or `finish`, and release the server."""
        assert self._stream is not None
        answer = await self._stream.answer()
        self._telemetry.answered(answer)
        await self.leave()
        return answer

    async def leave(self) -> None:
        """Cancel the request if it is still running, and release its slot on the server."""
        if self._server is not None:
            self._server.running -= 1
            self._server = None
        if self._pieces is not None:
            await self._pieces.aclose()  # type: ignore[attr-defined]
            self._pieces = None

    def failed(self, error: VideoLlamaError | None) -> None:
        self._telemetry.failed(error)
