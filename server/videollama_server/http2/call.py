"""One gRPC call: a request on its way out, and responses that come in pieces of any size."""

from typing import Protocol

from videollama_server.http2 import frames

STREAM_WINDOW = 2**20  # bytes of a call that are on their way at most, while its listener holds them
_PREFIX = 5  # of a gRPC message: whether it is compressed, and its length


class Listener(Protocol):
    """Both are called in the event loop; after `on_end`, and after `cancel`, nothing more comes."""

    def on_messages(self, messages: list[bytes]) -> None: ...

    def on_end(self, status: int, details: str) -> None:
        """gRPC's status code, 0 for a call that went well, and its words."""
        ...


class Carrier(Protocol):
    """The connection of a call."""

    def write(self, data: bytes) -> None: ...

    def cancel(self, stream: int) -> None: ...


class Call:
    """See `Channel.open`."""

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
        """What is to be sent next, at most so many bytes; none where not even the message's head fits."""
        room = min(most, self.send_window) - len(self._head)
        if room < 0 or (room == 0 and self._unsent):
            return b""
        data, self._head = self._head + self._unsent[:room], b""
        rest = self._unsent[room:]
        self.is_sent = not rest
        self._unsent = memoryview(b"") if self.is_sent else rest  # an empty part would keep the whole message
        self.send_window -= len(data)
        return data

    def cancel(self) -> None:
        """Its listener hears no more. A call that has ended stays as it is."""
        self._connection.cancel(self._stream)

    def hold(self) -> None:
        """Take no more than a window's bytes from now on, until `go_on`."""
        self._held = True

    def go_on(self) -> None:
        self._held = False
        self._give_window()

    def _give_window(self) -> None:
        if self._taken >= STREAM_WINDOW // 2 and not self._held and self.ended is None:
            self._connection.write(frames.window_update(self._stream, self._taken))
            self._taken = 0

    def take(self, data: bytes) -> None:
        """Data as it came: gRPC's messages may be cut anywhere."""
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
        """What came since the last time, and the end if it has come."""
        messages, self.messages = self.messages, []
        if messages:
            self._listener.on_messages(messages)
        if self.ended is not None:
            self._listener.on_end(*self.ended)
        else:
            self._give_window()
