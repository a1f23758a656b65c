"""One request at the servers: which of them has it, and what becomes of it when its server is lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from videollama_client.client_async import AsyncAnswerStream
from videollama_client.request_state import RESEND_SECONDS, RESTART_SECONDS
from videollama_core.protocol.errors import ServerUnreachable, StageRestarting, VideoLlamaError
from videollama_gateway.chat_request import ChatRequest
from videollama_gateway.servers import Server, Servers
from videollama_gateway.watch import Watch


class Answering:
    """One request on its way: sent to another server while no text has come and its server is gone."""

    def __init__(self, servers: Servers, asked: ChatRequest, request_id: str, watch: Watch) -> None:
        self._servers, self._asked, self._watch = servers, asked, watch
        self._names: Any = {
            "request_id": request_id,
            "traceparent": watch.traceparent,
            "measured": watch.is_measured,
            "media_digest": asked.media_digest,
        }
        self._stream: AsyncAnswerStream | None = None
        self._pieces: AsyncIterator[str] | None = None
        self._server: Server | None = None
        self.first: str | None = None

    async def begin(self) -> None:
        """Until the first text is there, or the whole of an answer without text."""
        deadline, lost = time.monotonic() + RESTART_SECONDS, None
        while True:
            try:
                server = self._servers.in_order(self._asked.model, self._asked.media_digest)[0]
                await self._begin_at(server)
                return
            except (ServerUnreachable, StageRestarting) as error:
                if self._server is None:  # none is ready: one may be started again, if there was one just now
                    if lost is None or time.monotonic() > deadline:
                        raise lost or error from error
                    await asyncio.sleep(RESEND_SECONDS)
                    continue
                self._server.ready = False  # until it is asked again
                await self.leave()
                if time.monotonic() > deadline:
                    raise
                lost = error

    async def _begin_at(self, server: Server) -> None:
        self._server = server
        server.running += 1
        self._stream = server.client.stream(self._asked.messages, **self._names, **self._asked.options)
        self._pieces = aiter(self._stream)
        self.first = await anext(self._pieces, None)
        if self.first is not None:
            self._watch.first_text()

    async def rest(self) -> AsyncIterator[str]:
        """The text after the first."""
        assert self._pieces is not None
        async for piece in self._pieces:
            yield piece

    async def finish(self) -> None:
        async for _ in self.rest():
            pass

    async def answer(self) -> Any:
        """Ends the request; the answer is whole by now."""
        assert self._stream is not None
        answer = await self._stream.answer()
        self._watch.answered(answer)
        await self.leave()
        return answer

    async def leave(self) -> None:
        """Free its place at the server, wherever the request is."""
        if self._server is not None:
            self._server.running -= 1
            self._server = None
        if self._pieces is not None:
            await self._pieces.aclose()  # type: ignore[attr-defined]
            self._pieces = None

    def failed(self, error: VideoLlamaError | None) -> None:
        self._watch.failed(error)
