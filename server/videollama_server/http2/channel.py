"""A connection to Triton that carries any number of gRPC calls, each with one request and many responses.

Everything runs in one event loop. The messages of one read from the socket are delivered together for each call, so that
the cost per message falls as the load rises.
"""

import asyncio
import urllib.parse
from collections import deque
from collections.abc import Iterable
from typing import cast

from videollama_server.http2 import frames
from videollama_server.http2.call import STREAM_WINDOW, Call, Listener

STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"  # the only method called here
OK, CANCELLED, UNKNOWN, INTERNAL, UNAVAILABLE = 0, 1, 2, 13, 14  # gRPC status codes
_CONNECTION_UPDATE = 2**30
_FRAME = 2**18
_STREAMS = 2**30  # stream ids to use on one connection before another is opened


class Channel:
    """Opens calls, over a connection that is made on demand.

    Args:
        target: unix:PATH or HOST:PORT, as in gRPC.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._headers: dict[str, bytes] = {}

    async def open(
        self, path: str, message: bytes, listener: Listener, metadata: Iterable[tuple[str, str]] = ()
    ) -> Call:
        """Start a call with its one request, connecting if necessary. Raises: OSError if nothing listens at the target."""
        connection = self._connection
        if connection is None or not connection.is_usable:
            async with self._connecting:
                connection = self._connection
                if connection is None or not connection.is_usable:
                    connection = self._connection = await self._connect()
        return self._open(connection, path, message, listener, metadata)

    def open_at_once(
        self, path: str, message: bytes, listener: Listener, metadata: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Start a call if there is already a connection; return whether there was one."""
        connection = self._connection
        if connection is None or not connection.is_usable:
            return False
        self._open(connection, path, message, listener, metadata)
        return True

    def _open(
        self,
        connection: "_Connection",
        path: str,
        message: bytes,
        listener: Listener,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> Call:
        block = self._headers.get(path)
        if block is None:
            block = self._headers[path] = frames.request_headers(path)
        for name, value in metadata:
            block += frames.field(name, value)
        return connection.open(block, message, listener)

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        if self._target.startswith("unix:"):
            _, connection = await loop.create_unix_connection(_Connection, self._target.removeprefix("unix:"))
        else:
            host, _, port = self._target.rpartition(":")
            _, connection = await loop.create_connection(_Connection, host, int(port))
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.is_usable = True
        self._calls: dict[int, Call] = {}
        self._next = 1
        self._rest = b""
        self._taken = 0  # bytes received since the last window update
        self._send_window, self._stream_window, self._frame = frames.WINDOW, frames.WINDOW, frames.FRAME
        self._sending: deque[int] = deque()  # streams whose request is not yet sent completely
        self._block, self._is_last = b"", False  # a header block that continues in another frame

    # --- callbacks of asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        values = {
            frames.HEADER_TABLE_SIZE: 0,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            frames.MAX_FRAME_SIZE: _FRAME,
        }
        room = frames.window_update(0, frames.MOST - frames.WINDOW)
        self.write(frames.PREFACE + frames.settings(values) + room)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_usable = False
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.ended = UNAVAILABLE, f"the connection ended ({error or 'closed'})"
            call.deliver()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        position, total = 0, len(data)
        updated: dict[int, Call] = {}
        try:
            while total - position >= frames.HEADER_BYTES:
                end = position + frames.HEADER_BYTES + int.from_bytes(data[position : position + 3], "big")
                if end > total:
                    break
                stream = int.from_bytes(data[position + 5 : position + 9], "big") & frames.MOST
                self._handle_frame(data[position + 3], data[position + 4], stream, data[position + 9 : end], updated)
                position = end
        except (frames.BadHeaders, IndexError) as error:
            self._fail(f"invalid HTTP/2 data was received ({error})")
            return
        self._rest = data[position:]
        for call in updated.values():
            call.deliver()

    # --- used by calls ---

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def open(self, block: bytes, message: bytes, listener: Listener) -> Call:
        stream, self._next = self._next, self._next + 2
        self.is_usable = self.is_usable and self._next < _STREAMS
        call = self._calls[stream] = Call(self, stream, listener, self._stream_window, message)
        self._sending.append(stream)
        self._send(frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block))
        return call

    def cancel(self, stream: int) -> None:
        if self._calls.pop(stream, None) is not None:
            self.write(frames.frame(frames.RST_STREAM, 0, stream, frames.CANCEL.to_bytes(4, "big")))

    def close(self) -> None:
        self.is_usable = False
        self._transport.close()

    def _send(self, prefix: bytes = b"") -> None:
        """Send as much of the requests as the windows allow, oldest first; one whose own window is full goes to the back."""
        chunks = [prefix]
        for _ in range(len(self._sending)):
            stream = self._sending.popleft()
            call = self._calls.get(stream)
            while call is not None and (data := call.next_data(min(self._frame, self._send_window))):
                self._send_window -= len(data)
                chunks.append(frames.frame(frames.DATA, frames.END_STREAM if call.is_sent else 0, stream, data))
                if call.is_sent:
                    call = None
            if call is not None:
                self._sending.append(stream)
        if data := b"".join(chunks):
            self.write(data)

    # --- frames ---

    def _handle_frame(self, kind: int, flags: int, stream: int, payload: bytes, updated: dict[int, Call]) -> None:
        call = self._calls.get(stream)
        if kind == frames.DATA:
            self._taken += len(payload)
            if self._taken >= _CONNECTION_UPDATE:
                self.write(frames.window_update(0, self._taken))
                self._taken = 0
            if call is not None:
                call.take(frames.unpadded(flags, payload) if flags & frames.PADDED else payload)
                updated[stream] = call
        elif kind in (frames.HEADERS, frames.CONTINUATION):
            self._handle_headers(kind, flags, stream, payload, updated)
        elif kind == frames.WINDOW_UPDATE:
            size = int.from_bytes(payload, "big") & frames.MOST
            if stream == 0:
                self._send_window += size
            elif call is not None:
                call.send_window += size
            if self._sending:
                self._send()
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._handle_settings(payload)
        elif kind == frames.PING and not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.RST_STREAM and call is not None:
            code = int.from_bytes(payload, "big")
            status = {frames.CANCEL: CANCELLED, frames.REFUSED: UNAVAILABLE}.get(code, INTERNAL)
            self._end(call, stream, status, f"the call was reset ({code})", updated)
        elif kind == frames.GOAWAY:
            self.is_usable = False
            last = int.from_bytes(payload[:4], "big") & frames.MOST
            for later in [number for number in self._calls if number > last]:
                self._end(self._calls[later], later, UNAVAILABLE, "the server takes no more calls", updated)

    def _handle_headers(self, kind: int, flags: int, stream: int, payload: bytes, updated: dict[int, Call]) -> None:
        """Leading headers carry nothing of interest; the trailers hold the call's status."""
        if kind == frames.HEADERS:
            self._is_last, self._block = bool(flags & frames.END_STREAM), b""
            payload = frames.unpadded(flags, payload)
        self._block += payload
        call = self._calls.get(stream)
        if not flags & frames.END_HEADERS or call is None or not self._is_last:
            return
        fields = frames.read_headers(self._block)
        status = fields.get(b"grpc-status", b"")
        details = urllib.parse.unquote(fields.get(b"grpc-message", b"").decode("ascii", "replace"))
        self._end(call, stream, int(status) if status.isdigit() else UNKNOWN, details, updated)

    def _handle_settings(self, payload: bytes) -> None:
        for offset in range(0, len(payload) - 5, 6):
            key, value = (
                int.from_bytes(payload[offset : offset + 2], "big"),
                int.from_bytes(payload[offset + 2 : offset + 6], "big"),
            )
            if key == frames.INITIAL_WINDOW_SIZE:
                for call in self._calls.values():
                    call.send_window += value - self._stream_window
                self._stream_window = value
            elif key == frames.MAX_FRAME_SIZE:
                self._frame = value
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if self._sending:
            self._send()

    def _end(self, call: Call, stream: int, status: int, details: str, updated: dict[int, Call]) -> None:
        del self._calls[stream]
        call.ended = status, details
        updated[stream] = call

    def _fail(self, reason: str) -> None:
        self.is_usable = False
        self._transport.abort()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.ended = INTERNAL, reason
            call.deliver()
