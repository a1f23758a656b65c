"""The public entry as a Triton stage: tensors to a Question, pieces of the answer to tensors."""

import contextlib
import json
import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from videollama_core.engines.media_cache import CACHE_VARIABLE, KEPT_BYTES
from videollama_core.media.video import Segment
from videollama_core.protocol import contract
from videollama_core.protocol.contract import MAX_REQUESTS
from videollama_core.protocol.errors import InvalidRequest, Overloaded
from videollama_core.protocol.limits import WORKING_SECONDS
from videollama_core.protocol.messages import Conversation, SamplingOptions
from videollama_core.protocol.questions import read_messages, read_question, read_stop
from videollama_core.protocol.trace_context import CALLER, CANCELLED, REQUEST
from videollama_core.telemetry import metric_definitions
from videollama_core.telemetry.meter import NO_METER, Meter, open_meter
from videollama_core.telemetry.traces import NO_SPAN, Span, open_tracer
from videollama_server.answers.answering import Piece
from videollama_server.answers.generation import AnswerLoop
from videollama_server.answers.known_media import Perception
from videollama_server.answers.piece_queue import PieceQueue
from videollama_server.fetch.gate import MediaGate
from videollama_server.fetch.policy import policy_of_environment
from videollama_server.installation import ADDRESS_VARIABLE, SOCKET_VARIABLE, check_gpu_tables
from videollama_server.machine.memory import map_large_blocks
from videollama_server.sandbox.callers import server_name
from videollama_server.stages.calls import TritonStages
from videollama_server.stages.decoupled import DecoupledStage, Reply
from videollama_server.stages.entry import Entry, Question
from videollama_server.stages.metrics import MetricsPublisher, cache_metrics, publish_running
from videollama_server.stages.python_backend import bundle_of, scalar, string
from videollama_server.stages.request_telemetry import (
    QUESTION_METRICS,
    SERVERS_FAULTS,
    TRACED_SERVICE,
    QuestionTelemetry,
    kind_of,
    record_failure,
)

# Sizes up to which a text is read and tokenized, and media are looked up by their digest, in less than half a millisecond.
_SHORT_BYTES = {"question": 4096, "messages": 4096, "media": 2**18}
ENDPOINT_CHECK_SECONDS = 0.5  # between two checks of an endpoint's request; the endpoint reports disconnections itself
ANNOUNCE_SECONDS = 0.05  # minimum time that a question's first message waits for its first text


def read_conversation(question: np.ndarray | None, messages: np.ndarray | None) -> Conversation:
    """Read the conversation. Raises: InvalidRequest unless exactly one of the two tensors is present."""
    if messages is not None and question is None:
        return read_messages(string(messages, "messages"))
    if question is not None and messages is None:
        return read_question(string(question, "question"))
    raise InvalidRequest("send either question (one string) or messages (JSON list of {role, content})")


def read_options(tensors: dict[str, np.ndarray | None], stop: np.ndarray | None = None) -> SamplingOptions:
    """Read the sampling options. Raises: BadSampling if a value is out of range."""
    options = [option.name for option in (*contract.OPTIONS, *contract.OWN_OPTIONS) if option.name in tensors]
    values = {name: scalar(tensors[name], name) for name in options}
    return SamplingOptions(**values, stop=() if stop is None else read_stop(stop.reshape(-1).tolist()))


def outputs(piece: Piece) -> dict[str, Any]:
    """Return a piece as outputs of contract.ENTRY, without those that it does not have."""
    values: dict[str, Any] = {"text": [piece.text.encode()]}
    if piece.output_ids:
        values["output_ids"] = piece.output_ids
    if piece.summary:
        values["summary"] = [json.dumps(asdict(piece.summary)).encode()]
    return values


class QuestionReply(PieceQueue):
    """The reply to one question. `send`, `announce` and `send_keepalive` are called in the loop's thread.

    The first message names the process that handles the question, with the first text or before it: the caller then knows that
    the question was accepted, and does not send it again.
    """

    def __init__(
        self, loop: AnswerLoop, reply: Reply, process: bytes, telemetry: QuestionTelemetry, span: Span = NO_SPAN
    ) -> None:
        super().__init__(loop)
        self._reply, self._process, self._telemetry, self.span = reply, process, telemetry, span
        self._has_failed = False
        self._announced, self._due = False, time.monotonic() + ANNOUNCE_SECONDS
        self.is_cancelled, self.when_cancelled = reply.is_cancelled, reply.when_cancelled

    @property
    def caller(self) -> str:
        """The mark of the caller; "" if it is unknown."""
        return self._reply.mark(CALLER)

    def asked(self, question: Question) -> None:
        self._telemetry.asked(question)

    @property
    def is_due(self) -> bool:
        """Whether the first message has waited long enough. May be read in any thread."""
        return not self._announced and time.monotonic() >= self._due

    def announce(self) -> None:
        """Send the first message, unless it has been sent."""
        if not self._announced:
            self.send_keepalive()

    def send_keepalive(self) -> None:
        self._announced = True
        with contextlib.suppress(Exception):  # the caller has disconnected
            self._reply.send({"process": [self._process]})

    def send(self, piece: Piece) -> None:
        """Send a piece. The one with the summary ends the reply, so that no keepalive can follow it."""
        self._telemetry.piece(piece)  # before it is sent: its caller may read the metrics next
        self.put(piece, at_once=not self._announced)  # the first text does not wait for what else the turn brings

    def transmit(self, piece: Piece) -> None:
        values = outputs(piece)
        if not self._announced:
            values["process"], self._announced = [self._process], True
        self._reply.send(values, last=piece.summary is not None)

    def on_unsent(self, error: Exception) -> None:
        self._reply.cancel()  # stops the generation
        self.fail(error)
        self.refuse(error)

    def fail(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._telemetry.failed(error)
            self.put_error(error)

    def refuse(self, error: Exception) -> None:
        self._reply.fail(error)


class EntryStage(DecoupledStage):
    """The stage `videollama2`: reads questions, and sends the pieces of their answers in one loop's thread."""

    contract = contract.ENTRY

    def load(self, args: dict[str, str]) -> None:
        map_large_blocks()
        bundle = bundle_of(args)
        tokenizer = bundle.tokenizer()
        if bundle.keeps_media_tokens_on_gpu:
            check_gpu_tables()
        end_ids = bundle.generation_defaults(tokenizer).end_ids
        address, language_model = os.environ.get(ADDRESS_VARIABLE), os.environ.get(SOCKET_VARIABLE)
        stages = TritonStages(end_ids, tokenizer.pad_id, address, language_model)
        cache_bytes = int(os.environ.get(CACHE_VARIABLE, KEPT_BYTES))
        self._entry = Entry(bundle, stages, MediaGate(policy_of_environment()), cache_bytes)
        self._publisher = MetricsPublisher(self.contract.name, cache_metrics(self._entry.media.cache), QUESTION_METRICS)
        for reason in SERVERS_FAULTS:
            self._publisher.observe(metric_definitions.REJECTED, 0, reason)
        resource = {"vl2.stage": self.contract.name}
        self._tracer = open_tracer(TRACED_SERVICE, resource=resource)
        self._meter = open_meter(TRACED_SERVICE, resource=resource)
        self._process = f"{server_name()}:{os.getpid()}-{secrets.token_hex(4)}".encode()
        self._loop = stages.loop
        self._working: set[QuestionReply] = set()
        self._marked: dict[str, Reply] = {}  # by the id that the endpoint gave the request
        self._threads = ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix=self.contract.name)
        self._running = self._published = 0
        self._lock = threading.Lock()
        publish_running(self.contract.name, 0)
        self._loop.later(WORKING_SECONDS.value, self._send_keepalives)

    def answer(self, inputs: dict[str, Any], reply: Reply) -> None:
        if scalar(inputs["ping"], "ping"):
            self._answer_ping(reply)
            return
        self._enter(reply)
        question_reply = self._begin(reply)
        if _is_short(inputs):
            self._read(inputs, question_reply, is_short=True)
        else:
            self._threads.submit(self._read, inputs, question_reply)
        self.callers.add(reply)  # last: the thread that it wakes would compete with the question's thread

    def _answer_ping(self, reply: Reply) -> None:
        """Answer a ping; one from the endpoint may also cancel a request."""
        cancelled = self._marked.get(reply.mark(CANCELLED))
        if cancelled is not None:
            cancelled.cancel()
        reply.send({"process": [self._process]}, last=True)

    def _enter(self, reply: Reply) -> None:
        with self._lock:
            if self._running >= MAX_REQUESTS:
                raise Overloaded(f"{self._running} requests are already being answered; try again later")
            self._running += 1
        reply.when_ended(self._leave)

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1
        self.callers.wake()

    def _begin(self, reply: Reply) -> QuestionReply:
        span = self._tracer.begin(self.contract.name, reply.traceparent, {"vl2.request_id": reply.request_id})
        telemetry = QuestionTelemetry(self._publisher, span, reply.request_id, self._meter_of(reply))
        question_reply = QuestionReply(self._loop, reply, self._process, telemetry, span)
        mark = reply.mark(REQUEST)
        self._working.add(question_reply)
        if mark:
            self._marked[mark], reply.check_seconds = reply, ENDPOINT_CHECK_SECONDS
        reply.when_ended(lambda: self._forget(question_reply, mark))
        return question_reply

    def _read(self, inputs: dict[str, Any], question_reply: QuestionReply, is_short: bool = False) -> None:
        """Read and answer a question. A short one whose media are not cached continues in another thread."""
        try:
            question = _read_question(inputs, question_reply.caller)
            question_reply.asked(question)
            cached = self._entry.cached(question) if is_short else None
            if is_short and question.kind is not None and cached is None:
                self._threads.submit(self._prepare, question, question_reply)
            else:
                self._prepare(question, question_reply, cached)
        except Exception as error:
            question_reply.fail(error)

    def _prepare(self, question: Question, question_reply: QuestionReply, cached: Perception | None = None) -> None:
        try:
            answering = self._entry.answer(question, question_reply, question_reply.span, cached)
        except Exception as error:
            question_reply.fail(error)
        else:
            question_reply.when_cancelled(lambda: self._loop.call(answering.cancel))

    def _forget(self, question_reply: QuestionReply, mark: str) -> None:
        self._working.discard(question_reply)
        self._marked.pop(mark, None)

    def failed(self, error: Exception, reply: Reply) -> None:
        record_failure(self._publisher, error, reply.request_id, Span(reply.traceparent).trace_id)
        self._meter_of(reply).failed(self.contract.name, time.time() - reply.began, kind_of(error))

    def on_round(self) -> None:
        """Announce the questions that have waited long, and publish the number of running ones if it has changed.

        A timer per question would wake the loop's thread while the question's own thread is busy.
        """
        running = self._running
        if running != self._published and publish_running(self.contract.name, running):
            self._published = running
        for question_reply in list(self._working):
            if question_reply.is_due:
                self._loop.call(question_reply.announce)

    def _meter_of(self, reply: Reply) -> Meter:
        """Return NO_METER for a request that the gateway measures, so that sums over both count each request once."""
        return NO_METER if self._meter.is_on and reply.is_measured else self._meter

    def _send_keepalives(self) -> None:
        """Repeat the first message of every question: one that waits long for its turn must not seem lost to its caller."""
        for question_reply in list(self._working):
            question_reply.send_keepalive()
        self._loop.later(WORKING_SECONDS.value, self._send_keepalives)

    def finalize(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._loop.close()
        self._publisher.close()
        self._tracer.close()
        self._meter.close()
        super().finalize()


def _is_short(inputs: dict[str, Any]) -> bool:
    """Whether reading the question and looking up its media may make the next question wait."""
    if inputs["media_url"] is not None:
        return False
    return all(
        (array := inputs[name]) is None or sum(map(len, array.flat)) <= most for name, most in _SHORT_BYTES.items()
    )


def _read_question(inputs: dict[str, Any], caller: str) -> Question:
    media = inputs["media"]
    return Question(
        conversation=read_conversation(inputs["question"], inputs["messages"]),
        options=read_options(inputs, inputs["stop"]),
        kind=scalar(inputs["media_kind"], "media_kind"),
        files=() if media is None else tuple(media.reshape(-1)),
        segment=Segment(**{tensor.name: scalar(inputs[tensor.name], tensor.name) for tensor in contract.WHICH}),
        url=scalar(inputs["media_url"], "media_url"),
        caller=caller,
    )
