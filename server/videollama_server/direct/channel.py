"""The entry's end of the socket: one connection for all requests, read in the event loop of the answers."""

import array
import asyncio
import socket
import threading
from collections import deque
from itertools import count, islice
from typing import Protocol

from videollama_core.protocol.errors import VideoLlamaError, from_wire
from videollama_server.direct import frames

_READ_BYTES = 2**18
_NUMBERS = 2**32
_PARTS = 64  # that one call sends; Linux takes at most 1024


class Call(Protocol):
    """The listener of a request. After `on_end` or `on_lost`, nothing more is called."""

    def on_ids(self, ids: list[int], cached_tokens: int) -> None:
        """Receive new token ids; `cached_tokens` counts the cached prompt tokens in the first call, and is 0 in later ones."""
        ...

    def on_end(self, error: VideoLlamaError | None) -> None: ...

    def on_lost(self) -> None:
        """The stage's process is gone."""
        ...


class DirectChannel:
    """Connects with the first request, and again after the stage has restarted.

    Requests may be sent from any thread; calls are notified only in the loop's thread.
    """

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self._path, self._loop = path, loop
        self._connection: _Connection | None = None
        self._lock = threading.Lock()
        self._numbers = count()

    def number(self) -> int:
        """Return the number for the next request."""
        return next(self._numbers) % _NUMBERS

    def open(self, number: int, message: bytes, call: Call) -> None:
        """Send a request, a serialized DirectRequest. Raises: OSError while the stage does not listen."""
        with self._lock:
            if self._connection is None or self._connection.is_lost:
                self._connection = _Connection(self._path, self._loop)
            connection = self._connection
        connection.open(number, message, call)

    def stop(self, number: int) -> None:
        """Stop a request, if it has not ended; its call is not notified any more. Only in the loop's thread."""
        if self._connection is not None:
            self._connection.stop(number)

    def close(self) -> None:
        """Close the connection. Only in the loop's thread."""
        if self._connection is not None:
            self._connection.lose()


class _Connection:
    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self.is_lost = loop, False
        self._lock = threading.Lock()  # guards calls, unsent, is_lost and sending
        self._calls: dict[int, Call] = {}
        self._unsent: deque[tuple[int, memoryview]] = deque()  # number of the request, part of a frame
        self._unread = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.setblocking(False)
            self._socket.connect(path)  # for a Unix socket, it succeeds or fails at once
        except OSError:
            self._socket.close()
            raise
        loop.call_soon_threadsafe(self._begin_to_read)

    def open(self, number: int, message: bytes, call: Call) -> None:
        with self._lock:
            if self.is_lost:
                raise ConnectionResetError("the stage's process is gone")
            self._calls[number] = call
            self._send(number, frames.HEADER.pack(len(message), frames.REQUEST, number), message)

    def stop(self, number: int) -> None:
        with self._lock:
            if self._calls.pop(number, None) is not None and not self._take_back(number):
                self._send(number, frames.frame(frames.STOP, number))

    def lose(self) -> None:
        """Close the connection, and notify every call on it."""
        with self._lock:
            if self.is_lost:
                return
            self.is_lost = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._unsent.clear()
            calls, self._calls = self._calls, {}
        for call in calls.values():
            call.on_lost()

    # --- sending, with the lock held: data that does not fit into the socket waits, in order ---

    def _send(self, number: int, *parts: bytes) -> None:
        was_idle = not self._unsent
        self._unsent.extend((number, memoryview(part)) for part in parts)
        if was_idle:
            self._write()
            if self._unsent:
                self._loop.call_soon_threadsafe(self._wait_for_room)

    def _take_back(self, number: int) -> bool:
        """Remove a request of which nothing has left: of a stage that reads nothing for long, they would pile up with their media."""
        parts = [part for other, part in self._unsent if other == number]
        if len(parts) < 2 or len(parts[0]) < frames.HEADER.size:
            return False
        self._unsent = deque(unsent for unsent in self._unsent if unsent[0] != number)
        return True

    def _write(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.sendmsg([part for _, part in islice(self._unsent, _PARTS)])
                while self._unsent and sent >= len(self._unsent[0][1]):
                    sent -= len(self._unsent.popleft()[1])
                if sent:
                    number, part = self._unsent[0]
                    self._unsent[0] = number, part[sent:]
                    return
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
            self._loop.call_soon_threadsafe(self.lose)

    def _wait_for_room(self) -> None:
        if not self.is_lost:
            self._loop.add_writer(self._socket, self._write_more)

    def _write_more(self) -> None:
        with self._lock:
            self._write()
            if not self._unsent:
                self._loop.remove_writer(self._socket)

    # --- receiving ---

    def _begin_to_read(self) -> None:
        if not self.is_lost:
            self._loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._take(self._unread + data)
        else:
            self.lose()

    def _take(self, data: bytes) -> None:
        """Process received frames; the ids of one request are delivered together."""
        position, size, header = 0, len(data), frames.HEADER
        arrived: dict[int, list[int]] = {}  # number -> cached tokens, then ids
        while size - position >= header.size:
            length, kind, number = header.unpack_from(data, position)
            end = position + header.size + length
            if end > size:
                break
            payload = data[position + header.size : end]
            position = end
            if kind == frames.IDS:
                cached, *ids = array.array("i", payload)
                if number in arrived:
                    arrived[number][0] += cached
                    arrived[number] += ids
                else:
                    arrived[number] = [cached, *ids]
            else:
                self._deliver(number, arrived.pop(number, None))
                with self._lock:
                    call = self._calls.pop(number, None)
                if call is not None:
                    call.on_end(from_wire(payload.decode("utf-8", "replace")) if kind == frames.ERROR else None)
        self._unread = data[position:]
        for number, ids in arrived.items():
            self._deliver(number, ids)

    def _deliver(self, number: int, arrived: list[int] | None) -> None:
        call = self._calls.get(number)
        if arrived is not None and call is not None:
            call.on_ids(arrived[1:], arrived[0])
