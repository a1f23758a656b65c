"""HTTP for the gateway: uvicorn's protocol on httptools, with what h11 provides and httptools lacks."""

import sys
from collections import deque
from typing import Any

from httptools import HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 2**16  # what a request may hold beside its body: the request line, headers and trailers
_CHUNK_BYTES = 8  # framing allowed for each byte of a chunked body


class LimitedHttp(HttpToolsProtocol):
    """Refuses a head or trailers over HEAD_BYTES, which the parser would collect without end.

    The limit is exceeded by at most what one read from the socket returns. A request to change the protocol is answered
    as one without it, and a response of unknown length to HTTP/1.0 ends with the connection.
    """

    _beside_body = 0  # bytes of the current request received so far that are not known to belong to its body
    _received = b""  # what is being parsed

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unanswered: deque[RequestResponseCycle] = deque()  # more than one if they were sent together

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._unanswered:  # uvicorn tells only the latest
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._beside_body += len(data)
        self._received = data
        super().data_received(data)
        self._received = b""
        if self._beside_body > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request exceeds the limit of {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._beside_body = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        size = len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value)
        if size > HEAD_BYTES:
            raise ValueError("the head is too large")  # the parser makes it a bad request
        super().on_headers_complete()
        if self.cycle is None or self.cycle.scope is not self.scope:
            return  # it asks for an upgrade, and is read again
        if self.scope["http_version"] == "1.0":
            _send_without_chunks(self.cycle)
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._beside_body = max(0, self._beside_body - _CHUNK_BYTES * len(body))
        super().on_body(body)

    def _should_upgrade(self) -> bool:
        return self.parser.get_method() != b"CONNECT"  # which has no meaning without an upgrade

    def handle_websocket_upgrade(self) -> None:
        """Read a request to upgrade again, without its header `Upgrade`, for which the parser has skipped the body."""
        skipped = sys.exception()
        assert isinstance(skipped, HttpParserUpgrade)
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.data_received(b"\r\n".join((*lines, b"", self._received[skipped.args[0] :])))


def _send_without_chunks(cycle: RequestResponseCycle) -> None:
    """Let the end of the connection end a response of unknown length: HTTP/1.0 has no chunks."""
    send, is_counted = cycle.send, True

    async def send_whole(message: Any) -> None:
        nonlocal is_counted
        if message["type"] == "http.response.start":
            is_counted = any(name.lower() == b"content-length" for name, _ in message["headers"])
            cycle.chunked_encoding = None if is_counted else False
        elif not is_counted:
            cycle.expected_content_length = len(message["body"])
        await send(message)

    cycle.send = send_whole  # type: ignore[method-assign]
