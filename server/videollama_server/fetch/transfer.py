"""One request to one checked address: bounded in bytes and seconds, and given up as soon as nobody wants it."""

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

CONNECT_SECONDS = 10.0  # until a connection is made and its certificate checked
LOOK_SECONDS = 0.1  # how often a transfer that waits looks whether it is still wanted
_HEAD_BYTES = 2**18  # of what is no body: status lines, headers, chunk sizes
_CHUNK_BYTES = 2**20


@dataclass
class Budget:
    """What a fetch may still take. `stopped` ends it."""

    deadline: float  # of time.monotonic()
    media_bytes: Limit = MEDIA_BYTES
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._bytes_left = self.media_bytes.value + _HEAD_BYTES

    def seconds_left(self) -> float:
        """Above 0. Raises: Cancelled, MediaUnreachable."""
        if self.stopped.is_set():
            raise Cancelled("the client left")
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise too_slow()
        return left

    def spend(self, count: int) -> None:
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise MediaUnreachable(f"media_url sends more than {self.media_bytes.value} bytes ({MEDIA_BYTES.name})")


def too_slow() -> MediaUnreachable:
    return MediaUnreachable("media_url was not fetched within its time (fetch_seconds); name a faster place")


class _Wire(io.RawIOBase):
    """A socket as http.client reads it, with a budget for everything that comes, headers included."""

    def __init__(self, connection: socket.socket, budget: Budget) -> None:
        self._connection, self._budget = connection, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._connection.settimeout(min(self._budget.seconds_left(), LOOK_SECONDS))
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
    status: int
    location: str | None
    body: bytes


def get(address: WebAddress, context: ssl.SSLContext, budget: Budget) -> Reply:
    """Ask the checked address itself; no name is looked up again, no proxy asked. A body only with the status 200.

    Raises: InvalidRequest, MediaUnreachable, Cancelled.
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
        raise MediaUnreachable(f"{address.host} did not hand over media_url ({reason})") from error


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
    places = resolve(address.host, address.port)
    for position, (family, place) in enumerate(places):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(min(budget.seconds_left(), CONNECT_SECONDS) / (len(places) - position))
            connection.connect(place)
            if address.scheme == "https":
                connection = context.wrap_socket(connection, server_hostname=address.host)
            return connection
        except ssl.SSLError:
            connection.close()
            raise
        except OSError:
            connection.close()
            if position == len(places) - 1:
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError  # resolve gives at least one place


def _body(response: http.client.HTTPResponse, most: Limit) -> bytes:
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding != "identity":
        raise MediaUnreachable("media_url is sent compressed (Content-Encoding), which was not asked for")
    told = _told_length(response)
    if told is not None:
        most.check(told, "the media at media_url")
    content = io.BytesIO()
    while part := response.read(_CHUNK_BYTES):
        content.write(part)
        most.check(content.tell(), "the media at media_url")
    if told is not None and content.tell() != told:
        raise MediaUnreachable(f"media_url ended after {content.tell()} bytes of {told}")
    if not content.tell():
        raise MediaUnreachable("media_url has no content")
    return content.getvalue()


def _told_length(response: http.client.HTTPResponse) -> int | None:
    """None where the body is sent in chunks, or until the end. Raises: MediaUnreachable unless it is one number."""
    found = set(response.headers.get_all("Content-Length", ()))
    if response.chunked or not found:
        return None
    length = found.pop().strip()
    if found or not re.fullmatch(r"[0-9]{1,18}", length):
        raise MediaUnreachable("media_url is sent with a Content-Length that is no number")
    return int(length)
