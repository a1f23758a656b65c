"""A stage with any number of responses to each request: how it answers, and how it learns that a caller has left."""

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb

from videollama_core.protocol.contract import MAX_REQUESTS, Stage
from videollama_core.protocol.errors import Overloaded
from videollama_core.protocol.questions import check_request_id
from videollama_core.protocol.trace_context import (
    MEASURED,
    TRACEPARENT,
    YES,
    checked_mark,
    checked_traceparent,
)
from videollama_server.answers.leavers import CallerWatch
from videollama_server.stages.metrics import publish_running
from videollama_server.stages.python_backend import PythonStage, read_inputs, refuse, respond

SWITCH_SECONDS = 0.0005  # that a message waits for a thread that computes


class Reply:
    """Where a decoupled stage answers one request; exactly one final message leaves it."""

    def __init__(self, stage: Stage, request: Any) -> None:
        self._stage = stage
        self._sender = request.get_response_sender()
        self._wanted = frozenset(request.requested_output_names())
        self.request_id: str = request.request_id()
        self.began = time.time()
        self._parameters: str = request.parameters()
        self._lock = threading.Lock()
        self.ended = False
        self._cancelled = False
        self.look_seconds = self._next_look = 0.0  # between two looks, at least; when the next one is due
        self._on_cancel: Callable[[], None] | None = None
        self._on_end: list[Callable[[], None]] = []

    @property
    def traceparent(self) -> str | None:
        return checked_traceparent(self._parameter(TRACEPARENT))

    @property
    def is_measured(self) -> bool:
        """Whether its caller sends its metrics."""
        return self._parameter(MEASURED) == YES

    def mark(self, name: str) -> str:
        """One of the endpoint's ids; "" where the request came another way."""
        return checked_mark(self._parameter(name))

    def _parameter(self, name: str) -> str | None:
        """A text of the request's parameters, where Triton puts headers, too."""
        if name not in self._parameters:
            return None
        found = json.loads(self._parameters).get(name)
        return found if isinstance(found, str) else None

    def is_cancelled(self) -> bool:
        """As the stage's `CallerWatch` saw it last."""
        return self._cancelled

    def look(self) -> None:
        """Ask the server, which costs a round trip to its process."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self.look_seconds
        with self._lock:  # Triton 2.51 crashes when it is asked about a request that has ended
            has_left = not self.ended and not self._cancelled and self._sender.is_cancelled()
        if has_left:
            self.cancel()

    def cancel(self) -> None:
        """Take note that the caller has left."""
        with self._lock:
            if self.ended or self._cancelled:
                return
            self._cancelled = True
            tell = self._on_cancel
        if tell is not None:
            tell()

    def when_cancelled(self, tell: Callable[[], None]) -> None:
        """Call it once the caller has left, at once if he has."""
        with self._lock:
            if self.ended:
                return
            self._on_cancel, is_late = tell, self._cancelled
        if is_late:
            tell()

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Call it when the final message has left; to be said before one may leave."""
        self._on_end.append(tell)

    def send(self, values: dict[str, Any], last: bool = False) -> None:
        """What the caller asked for of it: Triton's sender drops the rest without the interpreter's lock, which breaks the heap."""
        self._send(respond(self._stage, {name: value for name, value in values.items() if name in self._wanted}), last)

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
                words = () if response is None else (response,)
                self._sender.send(*words, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
            finally:
                if last:
                    self._on_cancel = None
                    for tell in self._on_end:
                        tell()
                    self._on_end.clear()  # what they know would be kept with this, and the media with it


class DecoupledStage(PythonStage):
    """A stage with any number of responses."""

    look_seconds = 0.005  # between two looks whether a caller has left

    def handle(self, inputs: dict[str, Any], reply: Reply) -> None:
        """Answer one request, now or later. What it raises ends the reply."""

    def takes_long(self, inputs: dict[str, Any]) -> bool:
        """Whether `handle` is for a thread of its own: otherwise the next request waits for it."""
        return True

    def handle_at_once(self, inputs: dict[str, Any], reply: Reply) -> bool:
        """Answer a request that needs no thread; True if it did."""
        return False

    def failed(self, error: Exception, reply: Reply) -> None:
        """Told of each request that ends with an error, before its caller is."""

    def initialize(self, args: dict[str, str]) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        self._threads = ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix=self.contract.name)
        self._running = self._told = 0
        self._lock = threading.Lock()
        publish_running(self.contract.name, 0)
        self.callers = CallerWatch(self.look_seconds, self.look)
        super().initialize(args)

    def answer_all(self, requests: list[Any]) -> None:
        for request in requests:
            reply = Reply(self.contract, request)
            try:
                check_request_id(reply.request_id)
                inputs = read_inputs(self.contract, request, keep=True)
                if self.handle_at_once(inputs, reply):
                    continue
                self._enter(reply)
            except Exception as error:
                self.failed(error, reply)
                reply.fail(error)
            else:
                if self.takes_long(inputs):
                    self._threads.submit(self._run, inputs, reply)
                else:
                    self._run(inputs, reply)
                self.callers.add(reply)  # last: the thread that it wakes would take turns with the question's

    def _enter(self, reply: Reply) -> None:
        with self._lock:
            if self._running >= MAX_REQUESTS:
                raise Overloaded(f"{self._running} requests are being answered already; try again later")
            self._running += 1
        reply.when_ended(self._leave)

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
        self.callers.wake()

    def look(self) -> None:
        """From the thread that looks for callers, once a round while requests run and once when the last has ended."""
        if self._running != self._told:
            self._told = self._running
            publish_running(self.contract.name, self._told)

    def _run(self, inputs: dict[str, Any], reply: Reply) -> None:
        try:
            self.handle(inputs, reply)
        except Exception as error:
            self.failed(error, reply)
            reply.fail(error)

    def finalize(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.callers.close()
        super().finalize()
