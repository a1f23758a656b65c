"""The client for asyncio; the same requests, answers and errors as client.py."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Unpack

import grpc

from videollama_client import transport
from videollama_client.options import Question, QuestionOptions
from videollama_client.request_state import PING_SECONDS, RESEND_SECONDS, SILENCE_SECONDS, Heartbeat, RequestState
from videollama_client.wire import AnswerReader, build_ping, build_question
from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import Cancelled, ServerUnreachable, VideoLlamaError
from videollama_core.protocol.messages import Answer


class AsyncAnswerStream:
    """Pieces of an answer as they come. After the last one, `answer()` is the whole."""

    def __init__(self, client: "AsyncClient", request_id: str, call: Callable[[], Any], timeout: float | None) -> None:
        self.request_id = request_id
        self._client, self._new_call = client, call
        self._state = RequestState(timeout)
        self._reader = self._state.reader
        self._send()

    def _send(self) -> None:
        with transport.translated(self._client.address):
            self._call = self._new_call()

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            while self._reader.answer is None:
                try:
                    message = await self._next_message()
                    if message is grpc.aio.EOF:
                        break
                    piece = self._reader.read(message)
                except VideoLlamaError as error:
                    self._state.send_again_or_raise(error)
                    await asyncio.sleep(RESEND_SECONDS)
                    if not self._reader.ended:
                        self._call.cancel()
                    self._reader.ended = False
                    self._send()
                    continue
                if piece:
                    yield piece
            self._reader.finish()
        finally:
            if self._reader.ended:
                await self._wait_for_end()
            else:
                self._call.cancel()
            self._client._forget(self.request_id)

    async def _next_message(self) -> Any:
        read = asyncio.ensure_future(self._call.read())
        heartbeat = None
        try:
            while not (await asyncio.wait({read}, timeout=SILENCE_SECONDS))[0]:
                if heartbeat is not None:  # a second of silence later: what a slow process sent before it has arrived
                    heartbeat.check(self._reader.process)
                heartbeat = await self._client._check_heartbeat()
            message = await read
            self._client._met = True
            return message
        except grpc.RpcError as error:
            ours = transport.translate(error, self._client.address)
            raise self._state.of_lost_server(ours, self._client._met) from error
        except asyncio.CancelledError:
            if self._state.cancelled:  # by `cancel`, not by the task's owner
                raise Cancelled("the request was cancelled") from None
            raise
        finally:
            read.cancel()

    async def _wait_for_end(self) -> None:
        """Until the server has closed the stream: a call that is dropped before is cancelled by grpc."""
        read = asyncio.ensure_future(self._call.read())
        await asyncio.wait({read}, timeout=SILENCE_SECONDS)
        if read.done() and not read.cancelled():
            read.exception()  # whatever it is, the answer is whole or its error raised
        else:
            read.cancel()

    def cancel(self) -> None:
        self._state.cancelled = True
        if not self._reader.ended:
            self._call.cancel()

    async def answer(self) -> Answer:
        """The whole answer; reads what is left of it."""
        if self._reader.answer is None:
            async for _ in self:
                pass
        return self._reader.finish()


class AsyncClient:
    """A connection to one server for asyncio. Arguments and errors are those of Client."""

    def __init__(self, address: str = "localhost:8001", timeout: float | None = None) -> None:
        self.address, self._timeout = transport.check_address(address), timeout
        self._channel = transport.open_async_channel(address)
        self._stub = transport.Stub(self._channel)
        self._active: dict[str, AsyncAnswerStream] = {}
        self._met = False  # the server has answered before
        self._heartbeat, self._heartbeat_lock = Heartbeat(), asyncio.Lock()

    def stream(self, question: Question, **options: Unpack[QuestionOptions]) -> AsyncAnswerStream:
        """Ask, and iterate (`async for`) over the pieces of text as they come; arguments and errors are those of `Client`."""
        request_id = options.pop("request_id", None) or uuid.uuid4().hex
        timeout = options.pop("timeout", None) or self._timeout
        request = build_question(question, request_id, options)
        call = lambda: self._stub.ModelStreamInfer(_once(request), timeout=timeout)  # noqa: E731
        stream = AsyncAnswerStream(self, request_id, call, timeout)
        self._active[request_id] = stream
        return stream

    async def ask(self, question: Question, **options: Unpack[QuestionOptions]) -> Answer:
        """The whole answer."""
        return await self.stream(question, **options).answer()

    def cancel(self, request_id: str) -> bool:
        """Cancel a running request; False if it is not running."""
        stream = self._active.get(request_id)
        if stream is not None:
            stream.cancel()
        return stream is not None

    async def health(self) -> bool:
        try:
            with transport.translated(self.address):
                self._met = (await self._stub.ModelReady(transport.READY(name=ENTRY.name), timeout=5)).ready
                return self._met
        except VideoLlamaError:
            return False

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not await self.health():
            if time.monotonic() >= deadline:
                raise ServerUnreachable(
                    f"no server is ready at {self.address} after {timeout:g} s; start one with vl2 serve"
                )
            await asyncio.sleep(0.1)

    async def _check_heartbeat(self) -> Heartbeat:
        asked = time.monotonic()
        async with self._heartbeat_lock:
            if not self._heartbeat.counts_for(asked):
                self._heartbeat = await self._ping()
            return self._heartbeat

    async def _ping(self) -> Heartbeat:
        began, reader = time.monotonic(), AnswerReader()
        try:
            with transport.translated(self.address):
                async for message in self._stub.ModelStreamInfer(_once(build_ping()), timeout=PING_SECONDS):
                    reader.read(message)
        except VideoLlamaError as error:
            return Heartbeat(began, error=error)
        return Heartbeat(began, reader.process)

    def _forget(self, request_id: str) -> None:
        self._active.pop(request_id, None)

    async def close(self) -> None:
        for stream in list(self._active.values()):
            stream.cancel()
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _once(request: Any) -> AsyncIterator[Any]:
    yield request
