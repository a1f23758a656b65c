"""The language model's end of the socket: receives the entry's requests, and sends token ids."""

import array
import logging
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import cast

from videollama_core.protocol import contract
from videollama_core.protocol.errors import StageFailed, VideoLlamaError
from videollama_server.direct import frames

logger = logging.getLogger(__name__)
_RETRY_SECONDS = 0.1  # between two attempts to accept a connection
_READ_BYTES = 2**16
_SEND_SECONDS = 10  # an entry that has not read from a full socket for this long is disconnected


class DirectReply:
    """The reply to one request. Data is buffered until the next `flush` of the listener."""

    def __init__(self, connection: "_Connection", number: int) -> None:
        self._connection, self._number = connection, number
        self.request_id = ""
        self.is_stopped = False

    def is_cancelled(self) -> bool:
        return self.is_stopped

    def send(self, ids: Sequence[int], cached_tokens: int = 0, last: bool = False) -> None:
        """Send new token ids; with the first, the number of prompt tokens that were in the KV cache."""
        payload = array.array("i", (cached_tokens, *ids)).tobytes()
        self._connection.put(self._number, frames.frame(frames.IDS, self._number, payload))
        if last:
            self._connection.put(self._number, frames.frame(frames.END, self._number), last=True)

    def fail(self, error: Exception) -> None:
        """End the reply with an error."""
        if not isinstance(error, VideoLlamaError):
            logger.error("request %s failed", self.request_id, exc_info=error)
            error = StageFailed(f"stage {contract.LANGUAGE_MODEL.name}: {type(error).__name__}: {error}")
        payload = error.to_wire().encode("utf-8", "replace")
        self._connection.put(self._number, frames.frame(frames.ERROR, self._number, payload), last=True)


class DirectListener:
    """Listens from construction on.

    Args:
        path: of the socket, in a folder that only this user can access; the socket of an earlier process is replaced.
        begin: accepts a request: its serialized DirectRequest, and its reply. An exception of it ends the reply.
        stop: ends an accepted request.
    """

    def __init__(
        self, path: str, begin: Callable[[bytearray, DirectReply], None], stop: Callable[[DirectReply], None]
    ) -> None:
        self._path, self._begin, self._stop = Path(path), begin, stop
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(path)
        self._socket.listen()
        self._connections: tuple[_Connection, ...] = ()  # replaced whole, so that `flush` needs no lock
        self._changing, self._is_closed = threading.Lock(), False
        threading.Thread(target=self._accept, name="direct", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError as error:
                if self._is_closed:
                    return
                logger.warning("a connection of the entry cannot be accepted: %s", error)  # for example no descriptor
                time.sleep(_RETRY_SECONDS)
                continue
            connection = _Connection(accepted, self._begin, self._stop)
            with self._changing:
                self._connections += (connection,)
            threading.Thread(target=self._serve, args=(connection,), name="direct", daemon=True).start()

    def _serve(self, connection: "_Connection") -> None:
        connection.run()
        with self._changing:
            self._connections = tuple(other for other in self._connections if other is not connection)

    def flush(self) -> None:
        """Send the buffered data of all replies, in one call for each connection."""
        for connection in self._connections:
            connection.flush()

    def close(self) -> None:
        """Accept no more connections. Existing ones stay open until the process ends."""
        self._is_closed = True
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()


class _Connection:
    def __init__(
        self,
        accepted: socket.socket,
        begin: Callable[[bytearray, DirectReply], None],
        stop: Callable[[DirectReply], None],
    ) -> None:
        self._socket, self._begin, self._stop = accepted, begin, stop
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_SECONDS, 0))
        self._replies: dict[int, DirectReply] = {}
        self._unsent: deque[bytes] = deque()
        self._sending = threading.Lock()

    def run(self) -> None:
        """Serve until the entry closes the connection or dies, which ends its requests."""
        try:
            with cast("BufferedReader", self._socket.makefile("rb", _READ_BYTES)) as file:
                while len(header := file.read(frames.HEADER.size)) == frames.HEADER.size:
                    length, kind, number = frames.HEADER.unpack(header)
                    payload = bytearray(length)  # writable, as the arrays in it must be
                    if file.readinto(payload) < length:  # the entry died while it sent
                        break
                    self._take(kind, number, payload)
                    del payload  # the media may be large, and the next request far
        except OSError:
            pass
        finally:
            for number in list(self._replies):
                self._end(number)
            with self._sending:  # a descriptor that `flush` writes to must not be another file's meanwhile
                self._socket.close()

    def _take(self, kind: int, number: int, payload: bytearray) -> None:
        if kind == frames.STOP:
            self._end(number)
            return
        reply = self._replies[number] = DirectReply(self, number)
        try:
            self._begin(payload, reply)
        except Exception as error:
            reply.fail(error)
            self.flush()

    def _end(self, number: int) -> None:
        reply = self._replies.pop(number, None)
        if reply is not None:
            reply.is_stopped = True
            self._stop(reply)

    def put(self, number: int, message: bytes, last: bool = False) -> None:
        """Buffer a message, unless its request has ended."""
        if number in self._replies:
            self._unsent.append(message)
            if last:
                self._replies.pop(number, None)

    def flush(self) -> None:
        """Send the buffered messages. Errors are ignored: if the entry is gone, its requests are being ended anyway."""
        if not self._unsent:
            return
        with self._sending, suppress(OSError):
            messages = b"".join(self._unsent.popleft() for _ in range(len(self._unsent)))
            try:
                self._socket.sendall(messages)
            except OSError:
                self._socket.shutdown(socket.SHUT_RDWR)  # half a message may have left; the reader ends all requests
