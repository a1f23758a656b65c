"""A stage that sends any number of responses to a request, and its detection of callers that have disconnected."""

import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import triton_python_backend_utils as pb

from videollama_core.protocol.contract import Stage
from videollama_core.protocol.questions import check_request_id
from videollama_core.protocol.trace_context import (
    MEASURED,
    TRACEPARENT,
    YES,
    checked_mark,
    checked_traceparent,
)
from videollama_server.answers.caller_watch import CallerWatch
from videollama_server.stages.python_backend import PythonStage, read_inputs, refuse, respond

SWITCH_SECONDS = 0.0005  # how long a thread that computes may delay one that handles a message


class Reply:
    """The responses of a decoupled stage to one request; exactly one of them is final."""

    def __init__(self, stage: Stage, request: Any) -> None:
        self._stage = stage
        self._sender = request.get_response_sender()
        self._requested = frozenset(request.requested_output_names())
        self.request_id: str = request.request_id()
        self.began = time.time()
        self._request_parameters: str = request.parameters()
        self._lock = threading.Lock()
        self.ended = False
        self._cancelled = False
        self.check_seconds = self._next_check = 0.0  # minimum time between two checks; when the next one is due
        self._on_cancel: Callable[[], None] | None = None
        self._on_end: list[Callable[[], None]] = []

    @property
    def traceparent(self) -> str | None:
        return checked_traceparent(self._parameter(TRACEPARENT))

    @property
    def is_measured(self) -> bool:
        """Whether the caller exports the metrics of this request."""
        return self._parameter(MEASURED) == YES

    def mark(self, name: str) -> str:
        """Return an id that the endpoint attached; "" if the request did not come through the endpoint."""
        return checked_mark(self._parameter(name))

    def _parameter(self, name: str) -> str | None:
        """Return a string parameter of the request; Triton adds the headers to the parameters."""
        value = self._parameters.get(name)
        return value if isinstance(value, str) else None

    @cached_property
    def _parameters(self) -> dict[str, Any]:
        return dict(json.loads(self._request_parameters or "{}"))

    def is_cancelled(self) -> bool:
        """Return the result of the last check by the stage's `CallerWatch`, without asking the server."""
        return self._cancelled

    def check_caller(self) -> None:
        """Ask the server whether the caller has disconnected, which costs a round trip to its process."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + self.check_seconds
        with self._lock:  # Triton 2.51 crashes on a query about a request that has ended
            is_gone = not self.ended and not self._cancelled and self._sender.is_cancelled()
        if is_gone:
            self.cancel()

    def cancel(self) -> None:
        """Mark the request as cancelled, and notify the stage."""
        with self._lock:
            if self.ended or self._cancelled:
                return
            self._cancelled = True
            callback = self._on_cancel
        if callback is not None:
            callback()

    def when_cancelled(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the request is cancelled, immediately if it already is, never once it has ended."""
        with self._lock:
            if self.ended:
                return
            self._on_cancel, is_late = callback, self._cancelled
        if is_late:
            callback()

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the final message is sent; must be registered before that."""
        self._on_end.append(callback)

    def send(self, values: dict[str, Any], last: bool = False) -> None:
        """Send those of the outputs that the caller requested.

        Triton's sender would drop the others without holding the GIL, which corrupts the heap.
        """
        requested = {name: value for name, value in values.items() if name in self._requested}
        self._send(respond(self._stage, requested), last)

    def fail(self, error: Exception) -> None:
        self._send(refuse(self._stage, error), last=True)

    def end(self) -> None:
        self._send(None, last=True)

    def _send(self, response: Any, last: bool) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = last
            try:
                responses = () if response is None else (response,)
                self._sender.send(*responses, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
            finally:
                if last:
                    self._on_cancel = None
                    for callback in self._on_end:
                        callback()
                    self._on_end.clear()  # the callbacks hold references, to the media among others


class DecoupledStage(PythonStage, ABC):
    """A stage that sends any number of responses to a request."""

    check_seconds = 0.005  # between two checks for disconnected callers

    @abstractmethod
    def answer(self, inputs: dict[str, Any], reply: Reply) -> None:
        """Answer one request, now or later; the next request waits until this returns. An exception ends the reply."""

    def failed(self, error: Exception, reply: Reply) -> None:
        """Called for each request that ends with an error of `answer`, before the error is sent."""

    def on_round(self) -> None:
        """Called once per round of checks for disconnected callers, and once after the last request has ended."""

    def initialize(self, args: dict[str, str]) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        self.callers = CallerWatch(self.check_seconds, self.on_round)
        super().initialize(args)

    def answer_all(self, requests: list[Any]) -> None:
        for request in requests:
            reply = Reply(self.contract, request)
            try:
                check_request_id(reply.request_id)
                self.answer(read_inputs(self.contract, request, keep=True), reply)
            except Exception as error:
                self.failed(error, reply)
                reply.fail(error)

    def finalize(self) -> None:
        self.callers.close()
        super().finalize()
