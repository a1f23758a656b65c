"""A media host for the tests: HTTPS on this machine, with generated certificates; each path answers in its own way.

Addresses of this machine are refused by the gate, so its names stand for PUBLIC and connections there are led here: the
one stand-in, at the level of sockets (`led_here`).
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PUBLIC = "93.184.215.14"
HOST, CDN, OTHER = "media.example.org", "a.cdn.example.org", "other.example.net"
# What each name stands for; a list of lists changes with every look-up.
NAMES = {name: [PUBLIC] for name in (HOST, CDN, OTHER)}

Answer = bytes | Callable[[ssl.SSLSocket], None]


def ok(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def moved(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")


def drip(head: bytes, piece: bytes = b"x", pause: float = 0.05) -> Callable[[ssl.SSLSocket], None]:
    """A response that never ends."""

    def send(connection: ssl.SSLSocket) -> None:
        connection.sendall(head)
        for _ in range(2000):
            connection.sendall(piece)
            if pause:
                time.sleep(pause)

    return send


class MediaHost:
    """Path -> answer; `asked` holds the request lines and Host headers received, `left` counts disconnected callers."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.left = threading.Semaphore(0)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, raw: socket.socket) -> None:
        try:
            with self._context.wrap_socket(raw, server_side=True) as connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096)
                lines = head.decode("latin-1").split("\r\n")
                self.asked.append(lines[0] + " | " + next(line for line in lines if line.startswith("Host:")))
                answer = self.answers.get(lines[0].split(" ")[1], b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n")
                if callable(answer):
                    answer(connection)
                else:
                    connection.sendall(answer)
        except OSError:
            self.left.release()

    def close(self) -> None:
        self._socket.close()


@contextmanager
def led_here(port: int, names: dict[str, list] | None = None) -> Iterator[None]:
    """Names resolve as the table says, and connections to PUBLIC reach the host on this machine."""
    table, look_up, connect = names or NAMES, socket.getaddrinfo, socket.socket.connect

    def getaddrinfo(host, port, *rest, **more):
        if host not in table:
            return look_up(host, port, *rest, **more)
        addresses = table[host]
        if addresses and isinstance(addresses[0], list):
            addresses = addresses.pop(0)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        kinds = [
            (socket.AF_INET6, (one, port, 0, 0)) if ":" in one else (socket.AF_INET, (one, port)) for one in addresses
        ]
        return [(family, socket.SOCK_STREAM, 6, "", place) for family, place in kinds]

    def connect_here(self, place):
        return connect(self, ("127.0.0.1", port) if place[0] == PUBLIC else place)

    socket.getaddrinfo, socket.socket.connect = getaddrinfo, connect_here
    try:
        yield
    finally:
        socket.getaddrinfo = look_up
        socket.socket.connect = connect
