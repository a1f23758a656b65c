"""The synchronous client. `ask` is `stream`, joined."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Unpack

from videollama_client import transport
from videollama_client.answer_reader import AnswerReader
from videollama_client.base_client import BaseClient
from videollama_client.call import Call
from videollama_client.connection import Connection, Metadata
from videollama_client.options import Question, QuestionOptions
from videollama_client.request_state import (
    PING_SECONDS,
    READY_SECONDS,
    RESEND_SECONDS,
    SILENCE_SECONDS,
    Heartbeat,
    RequestState,
    checked_seconds,
)
from videollama_client.wire import build_ping
from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import InvalidRequest, NotAllowed, ServerUnreachable, VideoLlamaError
from videollama_core.protocol.messages import Answer


class AnswerStream:
    """Iterate over the pieces of an answer as they arrive; `answer` is then the complete answer.

    A stream that is dropped, or left as a context manager, before its end is cancelled.
    """

    def __init__(
        self, client: "Client", request_id: str, call: Callable[[], Any], timeout: float | None, metadata: Metadata
    ) -> None:
        self.request_id = request_id
        self._client, self._new_call = client, call
        self._state, self._metadata = RequestState(request_id, timeout, client._restart_seconds), metadata
        self._reader = self._state.reader
        self._call = Call(call, client.address)
        client._active[request_id] = self  # fully built: from now on it may be cancelled

    def __iter__(self) -> Iterator[str]:
        try:
            while self._reader.answer is None:
                try:
                    message = self._next_message()
                    if message is None:
                        break
                    piece = self._reader.read(message)
                except VideoLlamaError as error:
                    self._state.send_again_or_raise(error)
                    time.sleep(RESEND_SECONDS)
                    self._end_call()
                    self._reader.ended = False
                    self._call = Call(self._new_call, self._client.address)
                    if self._state.cancelled:  # meanwhile
                        self._call.cancel()
                    continue
                if piece:
                    yield piece
            self._reader.finish()
        finally:
            ended = self._reader.ended and self._is_closed_by_server()
            if not ended:
                self._call.cancel()
            self._client._forget(self.request_id)
        if not ended:
            raise self._state.endless_stream_error()

    def _is_closed_by_server(self) -> bool:
        """Whether the server closed the stream without another message.

        It does so at once; closing the channel before that would cancel the stream.
        """
        try:
            return self._call.get(SILENCE_SECONDS) is None
        except (queue.Empty, VideoLlamaError):
            return True  # whatever the delay, the answer is complete or its error was raised

    def _next_message(self) -> Any:
        heartbeat = None
        while True:
            try:
                message = self._call.get(SILENCE_SECONDS)
            except queue.Empty:
                self._state.check_silence(heartbeat)
                heartbeat = self._client._check_heartbeat(self._reader.process, self._metadata)
                continue
            except VideoLlamaError as error:
                raise self._state.lost_server_error(error, self._client._has_answered) from error
            self._state.note_message()
            self._client._has_answered = True
            return message

    def cancel(self) -> None:
        """Stop the answer; the server frees its slot at once. Further iteration raises Cancelled."""
        self._state.cancelled = True
        self._end_call()

    def _end_call(self) -> None:
        if not self._reader.ended:
            self._call.cancel()

    def __enter__(self) -> "AnswerStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self._end_call()

    @property
    def answer(self) -> Answer:
        """The complete answer; reads whatever of the stream is left."""
        if self._reader.answer is None:
            for _ in self:
                pass
        return self._reader.finish()


class Client(BaseClient[AnswerStream]):
    """A connection to one server; safe to use from several threads.

    Args:
        address: host:port of the server's gRPC port.
        timeout: seconds that a request may take, unless it sets its own; None waits as long as the server works on it.
        tls: encrypt, and verify the server's certificate; implied by any of the next three arguments.
        root_certificates: the authorities to trust, as a path or PEM text in bytes; None means those of this machine.
        certificate: the client's own, in the same forms, for servers that require one (mutual TLS).
        key: the private key of `certificate`, in the same forms.
        api_key: sent with every call as `authorization: Bearer KEY`; without TLS, it can be read on the network.
        restart_seconds: how long to resend a request that no server process has accepted; 0 raises at once.

    A proxy is used only if the environment variable `grpc_proxy` names one, and never for loopback addresses.

    Raises: InvalidRequest for arguments that are invalid or contradict each other.
    """

    def _open(self, connection: Connection) -> Any:
        self._heartbeat_lock = threading.Lock()
        return connection.open()

    def stream(self, question: Question, **options: Unpack[QuestionOptions]) -> AnswerStream:
        """Send a question and iterate over the pieces of text as they arrive.

        Args:
            question: one user turn, or a list of {role, content} messages; media belongs to the first user turn.
            options: the media and how to answer; see `QuestionOptions`.
        Raises: an error of videollama_core.protocol.errors, here or during iteration.
        """
        request_id, timeout, request, metadata = self._request(question, options)
        call = lambda: self._stub.ask(request, timeout=timeout, metadata=metadata)  # noqa: E731
        return AnswerStream(self, request_id, call, timeout, metadata)

    def ask(self, question: Question, **options: Unpack[QuestionOptions]) -> Answer:
        """Return the complete answer; arguments and errors are those of `stream`."""
        return self.stream(question, **options).answer

    def health(self) -> bool:
        """Return whether the server is ready to answer questions."""
        try:
            return self._is_ready()
        except VideoLlamaError:
            return False

    def _is_ready(self) -> bool:
        with transport.translated(self.address):
            request = transport.READY(name=ENTRY.name)
            self._has_answered = self._stub.ModelReady(request, timeout=READY_SECONDS, metadata=self._metadata).ready
            return self._has_answered

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Block until the server is ready.

        Args:
            timeout: seconds, from 0.
        Raises: ServerUnreachable after `timeout` seconds without a ready server; InvalidRequest or NotAllowed at once.
        """
        deadline = time.monotonic() + checked_seconds(timeout, "timeout", or_zero=True)
        while True:
            try:
                if self._is_ready():
                    return
            except (InvalidRequest, NotAllowed):  # waiting does not fix these
                raise
            except VideoLlamaError:
                pass
            if time.monotonic() >= deadline:
                raise ServerUnreachable(transport.NOT_READY.format(self.address, timeout))
            time.sleep(0.1)

    def _check_heartbeat(self, process: str | None, metadata: Metadata) -> Heartbeat:
        """Send one ping on behalf of all silent requests, so that pings do not load the server.

        Behind a load balancer each request sends its own ping, with its own routing metadata.
        """
        now = time.monotonic()
        if self._note_server(process):
            return self._ping(metadata)
        with self._heartbeat_lock:
            if not self._heartbeat.counts_for(now):
                self._heartbeat = self._ping(metadata)
            return self._heartbeat

    def _ping(self, metadata: Metadata) -> Heartbeat:
        began, reader = time.monotonic(), AnswerReader()
        request, call_options = build_ping(), {"timeout": PING_SECONDS, "metadata": metadata}
        call = Call(lambda: self._stub.ask(request, **call_options), self.address)
        try:
            while (message := call.get(2 * PING_SECONDS)) is not None:
                reader.read(message)
        except queue.Empty:  # gRPC did not even report its own timeout: this machine is very busy
            return Heartbeat(began, error=ServerUnreachable("a ping was not answered"))
        except VideoLlamaError as error:
            call.cancel()
            return Heartbeat(began, error=error)
        return Heartbeat(began, reader.process)

    def close(self) -> None:
        """Cancel the running requests and close the connection."""
        self._cancel_all()
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
