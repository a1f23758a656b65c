"""Health and metrics over HTTP, for probes and Prometheus: three paths to GET, and nothing else.

Request bodies are never read; only the request line and the headers are parsed.
"""

import asyncio
import http.client
import socket
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

from videollama_core.protocol import limits
from videollama_core.telemetry.exposition import UNFINISHED, joined
from videollama_server.endpoint.state import State

_SECONDS = 5.0  # to receive a request's head and to answer it
_MOST_CONNECTIONS = 64
_TEXT = "text/plain; version=0.0.4; charset=utf-8"  # as Prometheus requires


def metrics_folder(metrics: Path) -> Path:
    """The folder where the stages of the server with this metrics socket write their metrics."""
    return metrics.with_name("stage-metrics")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def read_metrics(path: str, timeout: float = 10.0) -> bytes:
    """Return Triton's metrics, from its Unix socket, and those of its stages. Raises: OSError."""
    connection = _UnixConnection(path, timeout)
    try:
        connection.request("GET", "/metrics")
        triton_metrics = connection.getresponse().read()
    except http.client.HTTPException as error:
        raise OSError(f"no metrics from {path}: {error!r}") from error
    finally:
        connection.close()
    files = sorted(file for file in metrics_folder(Path(path)).glob("*") if not file.name.endswith(UNFINISHED))
    return triton_metrics + joined(file.read_text("utf-8") for file in files).encode()


class ReadOnlyHttp:
    """
    Args:
        metrics: Unix socket of Triton's metrics.
    """

    def __init__(self, state: State, metrics: str) -> None:
        self._state, self._metrics = state, metrics
        self._connections = 0

    async def start(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, host, port, limit=limits.METADATA_BYTES.value)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request, then close the connection."""
        self._connections += 1
        try:
            if self._connections <= _MOST_CONNECTIONS:
                async with asyncio.timeout(_SECONDS):
                    status, body = await self._answer(reader)
                    writer.write(_response(status, body))
                    await writer.drain()
        except (OSError, TimeoutError):
            pass
        finally:
            self._connections -= 1
            with suppress(OSError):
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[HTTPStatus, bytes]:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return HTTPStatus.BAD_REQUEST, b"the request is incomplete or too long\n"
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return HTTPStatus.BAD_REQUEST, b"this is not an HTTP/1.1 request\n"
        path = words[1].partition(b"?")[0]
        if path not in (b"/v2/health/live", b"/v2/health/ready", b"/metrics"):
            return (
                HTTPStatus.NOT_FOUND,
                b"the paths are /v2/health/live, /v2/health/ready and /metrics; send questions over gRPC\n",
            )
        if words[0] != b"GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, b"only GET is allowed\n"
        if path == b"/metrics":
            try:
                metrics = await asyncio.to_thread(read_metrics, self._metrics, _SECONDS)
                return HTTPStatus.OK, metrics + self._state.exposition()
            except OSError:
                return HTTPStatus.SERVICE_UNAVAILABLE, b"Triton does not answer\n"
        reason = self._state.not_ready if path == b"/v2/health/ready" else ""
        return (HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode()) if reason else (HTTPStatus.OK, b"")


def _response(status: HTTPStatus, body: bytes) -> bytes:
    allow = "Allow: GET\r\n" if status is HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n{allow}Content-Type: {_TEXT}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
