"""HTTP for the gateway: uvicorn's protocol on httptools, with the limit that h11 has and httptools lacks."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 2**16  # what a request may hold beside its body: the request line, headers and trailers
_CHUNK_BYTES = 8  # framing allowed for each byte of a chunked body


class LimitedHttp(HttpToolsProtocol):
    """Refuses a head or trailers over HEAD_BYTES, which the parser would collect without end.

    The limit is exceeded by at most what one read from the socket returns.
    """

    _beside_body = 0  # bytes of the current request received so far that are not known to belong to its body

    def data_received(self, data: bytes) -> None:
        self._beside_body += len(data)
        super().data_received(data)
        if self._beside_body > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request exceeds the limit of {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._beside_body = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            raise ValueError("the head is too large")  # the parser makes it a bad request
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside_body = max(0, self._beside_body - _CHUNK_BYTES * len(body))
        super().on_body(body)
