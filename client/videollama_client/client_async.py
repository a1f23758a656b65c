"""The asyncio client, with the same requests, answers and errors as client.py."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Unpack

import grpc

from videollama_client import transport
from videollama_client.answer_reader import AnswerReader
from videollama_client.base_client import BaseClient
from videollama_client.connection import Connection, Metadata
from videollama_client.options import Question, QuestionOptions
from videollama_client.request_state import (
    PING_SECONDS,
    READY_SECONDS,
    RESEND_SECONDS,
    SILENCE_SECONDS,
    Heartbeat,
    RequestState,
    checked_seconds,
)
from videollama_client.wire import build_ping
from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import Cancelled, InvalidRequest, NotAllowed, ServerUnreachable, VideoLlamaError
from videollama_core.protocol.messages import Answer


class AsyncAnswerStream:
    """Iterate over the pieces of an answer as they arrive; `answer()` then returns the complete answer.

    A stream that is dropped, or left as a context manager (`async with`), before its end is cancelled.
    """

    def __init__(
        self, client: "AsyncClient", request_id: str, call: Callable[[], Any], timeout: float | None, metadata: Metadata
    ) -> None:
        self.request_id = request_id
        self._client, self._new_call = client, call
        self._state, self._metadata = RequestState(request_id, timeout, client._restart_seconds), metadata
        self._reader = self._state.reader
        self._pinging: asyncio.Task[None] | None = None
        self._send()
        client._active[request_id] = self

    def _send(self) -> None:
        self._lost: VideoLlamaError | None = None
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
                    self._end_call()
                    self._reader.ended = False
                    self._send()
                    if self._state.cancelled:  # meanwhile
                        self._call.cancel()
                    continue
                if piece:
                    yield piece
            self._reader.finish()
        finally:
            ended = self._reader.ended and await self._is_closed_by_server()
            if not ended:
                self._call.cancel()
            self._client._forget(self.request_id)
        if not ended:
            raise self._state.endless_stream_error()

    async def _next_message(self) -> Any:
        task = asyncio.current_task()
        assert task is not None
        cancelled_before = task.cancelling()
        timer = asyncio.get_running_loop().call_later(SILENCE_SECONDS, self._begin_to_ping)
        try:
            message = await self._call.read()
            self._state.note_message()
            self._client._has_answered = True
            return message
        except grpc.RpcError as error:
            translated = transport.translate(error, self._client.address)
            raise self._state.lost_server_error(translated, self._client._has_answered) from error
        except asyncio.CancelledError:
            if self._lost is not None and task.cancelling() == cancelled_before:  # by `_ping`, not by the task's owner
                raise self._lost from None
            if self._state.cancelled:  # by `cancel`, not by the task's owner
                raise Cancelled("the request was cancelled") from None
            raise
        finally:
            timer.cancel()
            if self._pinging is not None:
                self._pinging.cancel()
                self._pinging = None

    def _begin_to_ping(self) -> None:
        self._pinging = asyncio.ensure_future(self._ping())

    async def _ping(self) -> None:
        """Ping the server while no message arrives; cancel the call if none can be expected any more."""
        heartbeat = None
        try:
            while True:
                self._state.check_silence(heartbeat)
                heartbeat = await self._client._check_heartbeat(self._reader.process, self._metadata)
                await asyncio.sleep(SILENCE_SECONDS)
        except VideoLlamaError as error:
            self._lost = error
            self._call.cancel()

    async def _is_closed_by_server(self) -> bool:
        """Whether the server closed the stream without another message; gRPC cancels a call dropped before that."""
        read = asyncio.ensure_future(self._call.read())
        await asyncio.wait({read}, timeout=SILENCE_SECONDS)
        if not read.done():
            read.cancel()
        elif not read.cancelled() and read.exception() is None:
            return read.result() is grpc.aio.EOF
        return True  # whatever the delay, the answer is complete or its error was raised

    def cancel(self) -> None:
        """Stop the answer; the server frees its slot at once. Further iteration raises Cancelled."""
        self._state.cancelled = True
        self._end_call()

    def _end_call(self) -> None:
        if not self._reader.ended:
            self._call.cancel()

    async def __aenter__(self) -> "AsyncAnswerStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            with contextlib.suppress(RuntimeError):  # the event loop is closed, and the call with it
                self._end_call()

    async def answer(self) -> Answer:
        """Return the complete answer; reads whatever of the stream is left."""
        if self._reader.answer is None:
            async for _ in self:
                pass
        return self._reader.finish()


class AsyncClient(BaseClient[AsyncAnswerStream]):
    """An asyncio connection to one server. Arguments and errors are those of `Client`."""

    def _open(self, connection: Connection) -> Any:
        self._heartbeat_lock = asyncio.Lock()
        return connection.open_async()

    def stream(self, question: Question, **options: Unpack[QuestionOptions]) -> AsyncAnswerStream:
        """Send a question and iterate (`async for`) over the text; arguments and errors are those of `Client.stream`."""
        request_id, timeout, request, metadata = self._request(question, options)
        call = lambda: self._stub.ask(request, timeout=timeout, metadata=metadata)  # noqa: E731
        return AsyncAnswerStream(self, request_id, call, timeout, metadata)

    async def ask(self, question: Question, **options: Unpack[QuestionOptions]) -> Answer:
        """Return the complete answer; arguments and errors are those of `Client.ask`."""
        return await self.stream(question, **options).answer()

    async def health(self) -> bool:
        """Return whether the server is ready to answer questions."""
        try:
            return await self._is_ready()
        except VideoLlamaError:
            return False

    async def _is_ready(self) -> bool:
        with transport.translated(self.address):
            request = transport.READY(name=ENTRY.name)
            response = await self._stub.ModelReady(request, timeout=READY_SECONDS, metadata=self._metadata)
            # grpc.aio returns None for bytes that it cannot parse.
            self._has_answered = response is not None and response.ready
            return self._has_answered

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server is ready; arguments and errors are those of `Client.wait_until_ready`."""
        deadline = time.monotonic() + checked_seconds(timeout, "timeout", or_zero=True)
        while True:
            try:
                if await self._is_ready():
                    return
            except (InvalidRequest, NotAllowed):
                raise
            except VideoLlamaError:
                pass
            if time.monotonic() >= deadline:
                raise ServerUnreachable(transport.NOT_READY.format(self.address, timeout))
            await asyncio.sleep(0.1)

    async def _check_heartbeat(self, process: str | None, metadata: Metadata) -> Heartbeat:
        now = time.monotonic()
        if self._note_server(process):
            return await self._ping(metadata)
        async with self._heartbeat_lock:
            if not self._heartbeat.counts_for(now):
                self._heartbeat = await self._ping(metadata)
            return self._heartbeat

    async def _ping(self, metadata: Metadata) -> Heartbeat:
        began, reader = time.monotonic(), AnswerReader()
        try:
            with transport.translated(self.address):
                call = self._stub.ask(build_ping(), timeout=PING_SECONDS, metadata=metadata)
                async for message in call:
                    reader.read(message)
        except VideoLlamaError as error:
            return Heartbeat(began, error=error)
        return Heartbeat(began, reader.process)

    async def close(self) -> None:
        """Cancel the running requests and close the connection."""
        self._cancel_all()
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
