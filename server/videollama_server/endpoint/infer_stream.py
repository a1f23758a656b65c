"""One ModelStreamInfer call. Each of its requests is forwarded to Triton as a separate call.

A request therefore ends exactly when Triton's call ends, whatever its responses say.
"""

import asyncio
import os
from collections import deque
from collections.abc import Collection

import grpc
from tritonclient.grpc import service_pb2

from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError
from videollama_core.protocol.trace_context import CALLER, REQUEST
from videollama_server.endpoint.answers import (
    Context,
    abort,
    abort_as,
    forwarded,
    headers_of,
)
from videollama_server.endpoint.api_keys import Caller
from videollama_server.endpoint.cancellation import Cancellation
from videollama_server.endpoint.request_checks import admit, restarting
from videollama_server.endpoint.state import State
from videollama_server.http2.call import Call
from videollama_server.http2.channel import OK, STREAM_INFER, UNAVAILABLE, Channel

_MOST_WAITING = 64  # responses not yet read by the caller, beyond which Triton's call is paused


class InferStream:
    """
    Args:
        triton: a channel for calls with one request and any number of responses.
        exposed: models that callers may use.
    """

    def __init__(
        self, triton: Channel, context: Context, caller: Caller, state: State, exposed: Collection[str]
    ) -> None:
        self.triton, self._context, self._caller = triton, context, caller
        self._state, self._exposed = state, exposed
        self._responses: deque[bytes] = deque()  # not yet read by the caller
        self._changed = asyncio.Event()
        self._requests: set[_Request] = set()
        self._pending = 0  # requests that have not ended, or whose last responses are not yet read
        self._failure: tuple[int, str] | None = None
        self._metadata = forwarded(headers_of(context))

    async def run(self) -> None:
        """Serve the stream until every request is answered; gRPC cancels this task if the caller disconnects."""
        reading: asyncio.Task[None] | None = None
        try:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            await self._begin(message, is_first=True)
            del message  # the media may be large, and the answer take long
            reading = asyncio.create_task(self._read_others())
            reading.add_done_callback(self._on_read)
            while self._failure is None and (self._requests or self._responses or not reading.done()):
                await self._write_responses()
            if self._failure is not None:
                await abort_as(self._context, *self._failure)
            await reading
        except VideoLlamaError as error:
            await abort(self._context, error)
        finally:
            if reading is not None:
                reading.cancel()
            for request in list(self._requests):
                request.cancel()
            self._count(-self._pending)

    async def _write_responses(self) -> None:
        """Write the waiting responses, or wait for some. Only this task writes."""
        self._changed.clear()
        if not self._responses:
            await self._changed.wait()
        while self._responses:
            await self._context.write(self._responses.popleft())
        self._count(len(self._requests) - self._pending)
        for request in self._requests:
            request.resume()

    def _count(self, change: int) -> None:
        self._pending += change
        self._state.pending += change

    def _on_read(self, reading: asyncio.Task[None]) -> None:
        if not reading.cancelled():
            reading.exception()  # or asyncio reports it, if the stream has failed before this task did
        self._changed.set()

    async def _read_others(self) -> None:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            await self._begin(message)

    async def _begin(self, message: bytes, is_first: bool = False) -> None:
        try:
            checked = admit(message, self._exposed, self._caller, self._state)
        except VideoLlamaError as error:
            if is_first and not isinstance(error, InvalidRequest):
                raise
            self._refuse(error)  # like Triton: the call and its other requests go on
            return
        is_question = checked.model == ENTRY.name and not checked.is_ping
        request = _Request(self, checked.is_ping, os.urandom(8).hex() if is_question else "")
        self._requests.add(request)
        self._count(1)
        try:
            metadata = self._metadata
            if request.mark:
                metadata += ((REQUEST, request.mark),)
            if checked.has_media and self._caller.mark:
                metadata += ((CALLER, self._caller.mark),)
            request.call = await self.triton.open(STREAM_INFER, message, request, metadata)
        except OSError as error:
            request.on_end(UNAVAILABLE, str(error))
        except BaseException:
            self.ended(request)
            raise

    def _refuse(self, error: VideoLlamaError) -> None:
        self.respond([service_pb2.ModelStreamInferResponse(error_message=error.to_wire()).SerializeToString()])

    def respond(self, messages: list[bytes]) -> bool:
        """Queue responses for the caller; return whether there is room for more."""
        self._responses += messages
        self._changed.set()
        return len(self._responses) < _MOST_WAITING

    def ended(self, request: "_Request", status: int = OK, details: str = "") -> None:
        """Handle the end of a request's call to Triton, with its gRPC status."""
        if request not in self._requests:
            return
        self._requests.discard(request)
        self._caller.leave(request.is_ping)
        if status == UNAVAILABLE and not request.begun:
            # Triton is restarting as a whole; callers that understand StageRestarting send the request again.
            self._refuse(restarting())
        elif status != OK:
            self._failure = status, details
        self._changed.set()


class _Request:
    """One request of a stream; the listener of its call to Triton."""

    def __init__(self, stream: InferStream, is_ping: bool, mark: str) -> None:
        self._stream, self.is_ping, self.mark = stream, is_ping, mark
        self.call: Call | None = None
        self._cancellation: Cancellation | None = None
        self.begun = self._held = False

    def on_messages(self, messages: list[bytes]) -> None:
        if self._cancellation is not None:
            return
        self.begun = True
        if not self._stream.respond(messages) and self.call is not None:
            self._held = True
            self.call.hold()

    def on_end(self, status: int, details: str) -> None:
        if self._cancellation is not None:
            self._cancellation.has_ended = True
        self._stream.ended(self, status, details)

    def resume(self) -> None:
        if self._held and self.call is not None:
            self._held = False
            self.call.go_on()

    def cancel(self) -> None:
        """Cancel the call, because the caller has disconnected."""
        if self.call is not None:
            if self.mark:
                self.resume()
                self._cancellation = Cancellation(self._stream.triton, self.call, self.mark)
            else:
                self.call.cancel()
        self._stream.ended(self)
