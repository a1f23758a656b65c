"""One gRPC call: sends a request, and assembles responses from data of any fragmentation."""

from typing import Protocol

from videollama_server.http2 import frames

STREAM_WINDOW = 2**20  # flow-control window of a call, in bytes: how much may arrive while its listener holds it
_PREFIX = 5  # bytes before a gRPC message: the compression flag and its length


class Listener(Protocol):
    """Receives a call's messages and its end, in the event loop. After `on_end` or `cancel`, neither is called again."""

    def on_messages(self, messages: list[bytes]) -> None: ...

    def on_end(self, status: int, details: str) -> None:
        """The gRPC status code, 0 for success, and the status message."""
        ...


class Carrier(Protocol):
    """The connection of a call."""

    def write(self, data: bytes) -> None: ...

    def cancel(self, stream: int) -> None: ...


class Call:
    """A call; made by `Channel.open`."""

    def __init__(self, connection: Carrier, stream: int, listener: Listener, window: int, message: bytes) -> None:
        self._connection, self._stream, self._listener = connection, stream, listener
        self.send_window = window
        self._head, self._unsent = b"\0" + len(message).to_bytes(4, "big"), memoryview(message)
        self.is_sent = False
        self._partial: list[bytes] = []
        self._partial_bytes = 0
        self.messages: list[bytes] = []
        self.ended: tuple[int, str] | None = None
        self._taken, self._held = 0, False

    def next_data(self, most: int) -> bytes:
        """The next at most `most` bytes to send; none if not even the message's prefix fits into the window."""
        room = min(most, self.send_window) - len(self._head)
        if room < 0 or (room == 0 and self._unsent):
            return b""
        data, self._head = self._head + self._unsent[:room], b""
        remaining = self._unsent[room:]
        self.is_sent = not remaining
        self._unsent = memoryview(b"") if self.is_sent else remaining  # an empty slice would keep the message alive
        self.send_window -= len(data)
        return data

    def cancel(self) -> None:
        """Reset the call; its listener is not called again. No effect on a call that has ended."""
        self._connection.cancel(self._stream)

    def hold(self) -> None:
        """Accept at most one window of data from now on, until `go_on`."""
        self._held = True

    def go_on(self) -> None:
        """Accept data without limit again."""
        self._held = False
        self._give_window()

    def _give_window(self) -> None:
        if self._taken >= STREAM_WINDOW // 2 and not self._held and self.ended is None:
            self._connection.write(frames.window_update(self._stream, self._taken))
            self._taken = 0

    def take(self, data: bytes) -> None:
        """Add received data, in which gRPC messages may be split anywhere."""
        self._taken += len(data)
        if not self._partial and len(data) >= _PREFIX and int.from_bytes(data[1:_PREFIX], "big") == len(data) - _PREFIX:
            self.messages.append(data[_PREFIX:])
            return
        self._partial.append(data)
        self._partial_bytes += len(data)
        head = self._partial[0]
        if len(head) < _PREFIX:
            head = self._partial[0] = b"".join(self._partial)
            del self._partial[1:]
        while len(head) >= _PREFIX and self._partial_bytes >= (
            size := _PREFIX + int.from_bytes(head[1:_PREFIX], "big")
        ):
            whole = b"".join(self._partial)
            self.messages.append(whole[_PREFIX:size])
            head = whole[size:]
            self._partial, self._partial_bytes = [head] if head else [], len(head)

    def deliver(self) -> None:
        """Pass new messages to the listener, and the end of the call if it has come."""
        messages, self.messages = self.messages, []
        if messages:
            self._listener.on_messages(messages)
        if self.ended is not None:
            self._listener.on_end(*self.ended)
        else:
            self._give_window()
