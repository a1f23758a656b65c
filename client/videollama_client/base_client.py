"""What the synchronous and the asyncio client share: the connection, building requests, and tracking active ones."""

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

from videollama_client import transport
from videollama_client.connection import DEFAULT_ADDRESS, Connection, Metadata, PemSource, connection_to
from videollama_client.options import Question, QuestionOptions
from videollama_client.request_state import (
    RESTART_SECONDS,
    Heartbeat,
    checked_seconds,
    identity_of,
    server_of,
    traced,
)
from videollama_client.wire import build_question, route_of
from videollama_core.protocol.contract import MEDIA_HEADER
from videollama_core.protocol.errors import InvalidRequest, shown


class _Stream(Protocol):
    def cancel(self) -> None: ...


StreamT = TypeVar("StreamT", bound=_Stream)


class BaseClient(ABC, Generic[StreamT]):
    """See `Client` for the arguments."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        timeout: float | None = None,
        *,
        tls: bool = False,
        root_certificates: PemSource | None = None,
        certificate: PemSource | None = None,
        key: PemSource | None = None,
        api_key: str | None = None,
        restart_seconds: float = RESTART_SECONDS,
    ) -> None:
        connection = connection_to(address, tls, root_certificates, certificate, key, api_key)
        self._metadata = connection.metadata
        self.address, self._timeout = address, checked_seconds(timeout, "timeout")
        self._restart_seconds = checked_seconds(restart_seconds, "restart_seconds", or_zero=True)
        self._channel = self._open(connection)
        self._stub = transport.Stub(self._channel)
        self._active: WeakValueDictionary[str, StreamT] = WeakValueDictionary()
        self._has_answered = False  # whether the server was ready when last asked, or has answered since
        self._server, self._are_several = "", False  # several servers: the address is that of a load balancer
        self._heartbeat = Heartbeat()

    @abstractmethod
    def _open(self, connection: Connection) -> Any:
        """Open a gRPC channel of the client's kind, synchronous or asyncio."""

    def _request(self, question: Question, options: QuestionOptions) -> tuple[str, float | None, Any, Metadata]:
        """Return the request id, timeout in seconds, request message and call metadata. Raises: InvalidRequest."""
        request_id, timeout = identity_of(cast("dict[str, Any]", options), self._timeout)
        metadata = traced(self._metadata, cast("dict[str, Any]", options))
        media_digest = options.pop("media_digest", None)
        request = build_question(question, request_id, options)
        return request_id, timeout, request, (*metadata, (MEDIA_HEADER, route_of(request, media_digest)))

    def cancel(self, request_id: str) -> bool:
        """Cancel a running request that another thread or task waits for; return False if it is not running.

        Raises: InvalidRequest unless the id is a string.
        """
        if not isinstance(request_id, str):
            raise InvalidRequest(f"request_id is {shown(request_id)}; it takes a string")
        stream = self._active.get(request_id)
        if stream is not None:
            stream.cancel()
        return stream is not None

    def _cancel_all(self) -> None:
        for stream in list(self._active.values()):
            stream.cancel()

    def _forget(self, request_id: str) -> None:
        self._active.pop(request_id, None)

    def _note_server(self, process: str | None) -> bool:
        """Record which server handles a request.

        Returns: whether several servers share the address, so that a ping of one says nothing about another.
        """
        server = server_of(process)
        self._are_several |= bool(server and self._server and server != self._server)
        self._server = server or self._server
        return self._are_several
