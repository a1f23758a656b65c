"""One HTTP request to a checked address, limited in bytes and seconds, and cancellable."""

import http.client
import io
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from videollama_core.protocol.errors import Cancelled, MediaUnreachable
from videollama_core.protocol.limits import MEDIA_BYTES, Limit
from videollama_server.fetch.addresses import WebAddress, resolve

CONNECT_SECONDS = 10.0  # to connect and verify the certificate
POLL_SECONDS = 0.1  # how often a waiting transfer checks for cancellation
_HEAD_BYTES = 2**18  # for everything but the body: status lines, headers, chunk sizes
_CHUNK_BYTES = 2**20


@dataclass
class Budget:
    """The time and bytes that a fetch may still use. Setting `stopped` ends it."""

    deadline: float  # of time.monotonic()
    media_bytes: Limit = MEDIA_BYTES
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._bytes_left = self.media_bytes.value + _HEAD_BYTES

    def seconds_left(self) -> float:
        """The remaining seconds, above 0. Raises: Cancelled; MediaUnreachable if none are left."""
        if self.stopped.is_set():
            raise Cancelled("the client disconnected")
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise too_slow()
        return left

    def spend(self, count: int) -> None:
        """Account for received bytes. Raises: MediaUnreachable if there are too many."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise MediaUnreachable(
                f"media_url has more than {self.media_bytes.value} bytes ({MEDIA_BYTES.name}); use smaller media"
            )


def too_slow() -> MediaUnreachable:
    """The error for a fetch that runs out of time."""
    return MediaUnreachable("media_url was not fetched within the time limit (fetch_seconds); use a faster host")


class _Wire(io.RawIOBase):
    """A socket for http.client that charges everything received, headers included, to a budget."""

    def __init__(self, connection: socket.socket, budget: Budget) -> None:
        self._connection, self._budget = connection, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._connection.settimeout(min(self._budget.seconds_left(), POLL_SECONDS))
            try:
                count = self._connection.recv_into(buffer)
            except TimeoutError:
                continue
            self._budget.spend(count)
            return count

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self, 2**16)


@dataclass(frozen=True)
class Reply:
    """What a web server answered; the body is empty unless the status is 200."""

    status: int
    location: str | None
    body: bytes


def get(address: WebAddress, context: ssl.SSLContext, budget: Budget) -> Reply:
    """Send a GET request; the body is read only for status 200. No proxy is used, and the name is resolved only once.

    Raises: InvalidRequest if the name resolves to an address that is not public; MediaUnreachable; Cancelled.
    """
    try:
        with _connect(address, context, budget) as connection:
            connection.settimeout(budget.seconds_left())
            connection.sendall(_request(address))
            response = http.client.HTTPResponse(_Wire(connection, budget), method="GET")  # type: ignore[arg-type]
            with response:
                response.begin()
                body = _body(response, budget.media_bytes) if response.status == 200 else b""
                return Reply(response.status, response.headers.get("Location"), body)
    except TimeoutError as error:
        raise too_slow() from error
    except ssl.SSLCertVerificationError as error:
        raise MediaUnreachable(f"the certificate of {address.host} is not valid: {error.verify_message}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MediaUnreachable(f"media_url could not be fetched from {address.host} ({reason})") from error


def _request(address: WebAddress) -> bytes:
    lines = (
        f"GET {address.target} HTTP/1.1",
        f"Host: {address.authority}",
        "User-Agent: videollama2-service",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _connect(address: WebAddress, context: ssl.SSLContext, budget: Budget) -> socket.socket:
    endpoints = resolve(address.host, address.port)
    for position, (family, socket_address) in enumerate(endpoints):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(min(budget.seconds_left(), CONNECT_SECONDS) / (len(endpoints) - position))
            connection.connect(socket_address)
            if address.scheme == "https":
                connection = context.wrap_socket(connection, server_hostname=address.host)
            return connection
        except ssl.SSLError:
            connection.close()
            raise
        except OSError:
            connection.close()
            if position == len(endpoints) - 1:
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError  # resolve returns at least one address


def _body(response: http.client.HTTPResponse, most: Limit) -> bytes:
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise MediaUnreachable(
            "the host of media_url compresses it (Content-Encoding) against the request; use another host"
        )
    length = _content_length(response)
    if length is not None:
        most.check(length, "the media at media_url")
    content = io.BytesIO()
    while part := response.read(_CHUNK_BYTES):
        content.write(part)
        most.check(content.tell(), "the media at media_url")
    if length is not None and content.tell() != length:
        raise MediaUnreachable(f"media_url ended after {content.tell()} of {length} bytes")
    if not content.tell():
        raise MediaUnreachable("media_url is empty")
    return content.getvalue()


def _content_length(response: http.client.HTTPResponse) -> int | None:
    """The Content-Length in bytes; None for a body that is chunked or ends with the connection.

    Raises: MediaUnreachable unless it is a single number.
    """
    values = set(response.headers.get_all("Content-Length", ()))
    if response.chunked or not values:
        return None
    length = values.pop().strip()
    if values or not re.fullmatch(r"[0-9]{1,18}", length):
        raise MediaUnreachable("the host of media_url sends an invalid Content-Length")
    return int(length)
