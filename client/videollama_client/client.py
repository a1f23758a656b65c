"""The client for ordinary code. `ask` is `stream`, joined."""

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
    """Pieces of an answer as they come. After the last one, `answer` is the whole.

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
        client._active[request_id] = self  # whole: it may be cancelled from now on

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
            raise self._state.went_on()

    def _is_closed_by_server(self) -> bool:
        """Whether it said nothing more and closed the stream, which it does at once: a channel that is closed before
        cancels it."""
        try:
            return self._call.get(SILENCE_SECONDS) is None
        except (queue.Empty, VideoLlamaError):
            return True  # whatever holds it up, the answer is whole or its error raised

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
                raise self._state.of_lost_server(error, self._client._met) from error
            self._state.heard()
            self._client._met = True
            return message

    def cancel(self) -> None:
        """Stop the answer; the server frees its place at once. Iterating on raises Cancelled."""
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
        """The whole answer; reads what is left of it."""
        if self._reader.answer is None:
            for _ in self:
                pass
        return self._reader.finish()


class Client(BaseClient[AnswerStream]):
    """A connection to one server; safe to use from several threads.

    Args:
        address: host:port of the server's gRPC port.
        timeout: seconds that a request may take unless it names its own; None waits as long as the server works.
        tls: encrypt, and check the server's certificate; naming any of the next three implies it.
        root_certificates: the authorities to trust, a path or PEM text as bytes; None means those of this machine.
        certificate, key: your own, likewise, where the server asks for them (mutual TLS).
        api_key: goes with every call as `authorization: Bearer KEY`; without TLS, everyone on the way can read it.
        restart_seconds: how long a request that no process of the server has is sent again; 0 raises at once.

    A proxy is used only where the environment's `grpc_proxy` names one, and never for loopback addresses.
    """

    def _open(self, connection: Connection) -> Any:
        self._heartbeat_lock = threading.Lock()
        return connection.open()

    def stream(self, question: Question, **options: Unpack[QuestionOptions]) -> AnswerStream:
        """Ask, and iterate over the pieces of text as they come.

        Args:
            question: one user turn, or a list of {role, content} messages; media belongs to the first.
            options: media and how to answer, see `QuestionOptions`.
        Raises: an error of videollama_core.protocol.errors, here or while iterating.
        """
        request_id, timeout, request, metadata = self._request(question, options)
        call = lambda: self._stub.ask(request, timeout=timeout, metadata=metadata)  # noqa: E731
        return AnswerStream(self, request_id, call, timeout, metadata)

    def ask(self, question: Question, **options: Unpack[QuestionOptions]) -> Answer:
        """The whole answer; arguments and errors are those of `stream`."""
        return self.stream(question, **options).answer

    def health(self) -> bool:
        """True if the server answers questions."""
        try:
            return self._is_ready()
        except VideoLlamaError:
            return False

    def _is_ready(self) -> bool:
        with transport.translated(self.address):
            asked = transport.READY(name=ENTRY.name)
            self._met = self._stub.ModelReady(asked, timeout=READY_SECONDS, metadata=self._metadata).ready
            return self._met

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Raises: ServerUnreachable after `timeout` seconds without a ready server; NotAllowed at once."""
        deadline = time.monotonic() + checked_seconds(timeout, "timeout", or_zero=True)
        while True:
            try:
                if self._is_ready():
                    return
            except (InvalidRequest, NotAllowed):  # which no waiting mends
                raise
            except VideoLlamaError:
                pass
            if time.monotonic() >= deadline:
                raise ServerUnreachable(transport.NOT_READY.format(self.address, timeout))
            time.sleep(0.1)

    def _check_heartbeat(self, process: str | None, metadata: Metadata) -> Heartbeat:
        """One ping for all requests that wait in silence: they must not be what keeps the server busy.

        Behind a balancer, each goes the way of its request.
        """
        asked = time.monotonic()
        if self._meet(process):
            return self._ping(metadata)
        with self._heartbeat_lock:
            if not self._heartbeat.counts_for(asked):
                self._heartbeat = self._ping(metadata)
            return self._heartbeat

    def _ping(self, metadata: Metadata) -> Heartbeat:
        began, reader = time.monotonic(), AnswerReader()
        request, more = build_ping(), {"timeout": PING_SECONDS, "metadata": metadata}
        call = Call(lambda: self._stub.ask(request, **more), self.address)
        try:
            while (message := call.get(2 * PING_SECONDS)) is not None:
                reader.read(message)
        except queue.Empty:  # gRPC itself says nothing within its timeout: a machine that is very busy
            return Heartbeat(began, error=ServerUnreachable("a ping was not answered"))
        except VideoLlamaError as error:
            call.cancel()
            return Heartbeat(began, error=error)
        return Heartbeat(began, reader.process)

    def close(self) -> None:
        self._cancel_all()
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
