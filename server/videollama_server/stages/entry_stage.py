"""The public entry as a Triton stage: tensors -> Question, pieces -> tensors."""

import contextlib
import json
import os
import secrets
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from videollama_core.engines.media_cache import CACHE_VARIABLE, KEPT_BYTES, MediaCache
from videollama_core.media.video import Segment
from videollama_core.protocol import contract
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.limits import WORKING_SECONDS
from videollama_core.protocol.messages import Conversation, SamplingOptions
from videollama_core.protocol.questions import read_messages, read_question, read_stop
from videollama_core.protocol.trace_context import CALLER, CANCELLED, REQUEST
from videollama_core.telemetry import figures
from videollama_core.telemetry.measures import NO_MEASURES, Measures, open_measures
from videollama_core.telemetry.traces import Span, open_tracer
from videollama_server.answers.answering import Piece
from videollama_server.fetch.gate import MediaGate
from videollama_server.fetch.policy import policy_of_environment
from videollama_server.installation import ADDRESS_VARIABLE, SOCKET_VARIABLE, check_gpu_tables
from videollama_server.machine.memory import map_large_blocks
from videollama_server.sandbox.callers import server_name
from videollama_server.stages.calls import TritonStages
from videollama_server.stages.decoupled import DecoupledStage, Reply
from videollama_server.stages.entry import Entry, Question
from videollama_server.stages.metrics import Metric, MetricsPublisher
from videollama_server.stages.python_backend import bundle_of, scalar, string
from videollama_server.stages.watch import (
    QUESTION_FIGURES,
    SERVERS_FAULTS,
    TRACED_SERVICE,
    QuestionWatch,
    kind_of,
    tell_failed,
)

SHORT_BYTES = 4096  # of a question: half a millisecond's work
ENDPOINT_LOOK_SECONDS = 0.5  # between two looks at a request of the endpoint, which says itself whose caller has left
INTRODUCE_SECONDS = 0.05  # how long a question's first message waits for its first text, at least


def read_conversation(question: np.ndarray | None, messages: np.ndarray | None) -> Conversation:
    """Raises: InvalidRequest unless exactly one of the two is there."""
    if messages is not None and question is None:
        return read_messages(string(messages, "messages"))
    if question is not None and messages is None:
        return read_question(string(question, "question"))
    raise InvalidRequest("send either question (one string) or messages (JSON list of {role, content})")


def read_options(tensors: dict[str, np.ndarray | None], stop: np.ndarray | None = None) -> SamplingOptions:
    """Raises: BadSampling on a value out of range."""
    options = [option.name for option in (*contract.OPTIONS, *contract.OWN_OPTIONS) if option.name in tensors]
    values = {name: scalar(tensors[name], name) for name in options}
    return SamplingOptions(**values, stop=() if stop is None else read_stop(stop.reshape(-1).tolist()))


def outputs(piece: Piece) -> dict[str, Any]:
    """A piece as outputs of contract.ENTRY; those that it does not have are left out."""
    values: dict[str, Any] = {"text": [piece.text.encode()]}
    if piece.output_ids:
        values["output_ids"] = piece.output_ids
    if piece.summary:
        values["summary"] = [json.dumps(asdict(piece.summary)).encode()]
    return values


class QuestionReply:
    """The reply to one question. All is said in the loop's thread.

    The first message tells which process has the question, with the first text or before it: the caller then knows that the
    question was taken, and does not send it again.
    """

    def __init__(self, reply: Reply, process: bytes, watch: QuestionWatch) -> None:
        self._reply, self._process, self._watch = reply, process, watch
        self._introduced, self._due = False, time.monotonic() + INTRODUCE_SECONDS
        self.is_cancelled = reply.is_cancelled

    @property
    def is_due(self) -> bool:
        """Whether the first message has waited long enough. May be asked in any thread."""
        return not self._introduced and time.monotonic() >= self._due

    def introduce(self) -> None:
        """Unless a text has."""
        if not self._introduced:
            self.say_that_it_works()

    def say_that_it_works(self) -> None:
        self._introduced = True
        with contextlib.suppress(Exception):  # its caller has left
            self._reply.send({"process": [self._process]})

    def send(self, piece: Piece) -> None:
        """The summary ends the reply: nothing that is still said of the request comes after it."""
        self._watch.piece(piece)
        values = outputs(piece)
        if not self._introduced:
            values["process"], self._introduced = [self._process], True
        self._reply.send(values, last=piece.summary is not None)

    def fail(self, error: Exception) -> None:
        self._watch.failed(error)
        self._reply.fail(error)


def _metrics(cache: MediaCache[Any]) -> tuple[Metric, ...]:
    return (
        Metric(figures.CACHE_QUERIES, lambda: cache.hits + cache.misses),
        Metric(figures.CACHE_HITS, lambda: cache.hits),
        Metric(figures.CACHE_EVICTIONS, lambda: cache.evictions),
        Metric(figures.CACHE_BYTES, lambda: cache.bytes),
    )


class EntryStage(DecoupledStage):
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
        self._publisher = MetricsPublisher(self.contract.name, _metrics(self._entry.media.cache), QUESTION_FIGURES)
        for reason in SERVERS_FAULTS:
            self._publisher.tell(figures.REJECTED, 0, reason)
        about = {"vl2.stage": self.contract.name}
        self._tracer = open_tracer(TRACED_SERVICE, resource=about)
        self._measures = open_measures(TRACED_SERVICE, resource=about)
        self._process = f"{server_name()}:{os.getpid()}-{secrets.token_hex(4)}".encode()
        self._loop = stages.loop
        self._working: set[QuestionReply] = set()
        self._marked: dict[str, Reply] = {}  # by the endpoint's id of the request
        self._loop.later(WORKING_SECONDS.value, self._say_that_it_works)

    def handle_at_once(self, inputs: dict[str, Any], reply: Reply) -> bool:
        """A ping is answered at once; the endpoint's may cancel a request."""
        is_ping = bool(scalar(inputs["ping"], "ping"))
        if is_ping:
            cancelled = self._marked.get(reply.mark(CANCELLED))
            if cancelled is not None:
                cancelled.cancel()
            reply.send({"process": [self._process]}, last=True)
        return is_ping

    def takes_long(self, inputs: dict[str, Any]) -> bool:
        """A short question about no media is asked at once: a thread would cost as much as the question."""
        if inputs["media_kind"] is not None or inputs["media"] is not None or inputs["media_url"] is not None:
            return True
        words = [
            text for name in ("question", "messages") if (array := inputs[name]) is not None for text in array.flat
        ]
        return sum(map(len, words)) > SHORT_BYTES

    def handle(self, inputs: dict[str, Any], reply: Reply) -> None:
        span = self._tracer.begin(self.contract.name, reply.traceparent, {"vl2.request_id": reply.request_id})
        watch = QuestionWatch(self._publisher, span, reply.request_id, self._measures_of(reply))
        question = QuestionReply(reply, self._process, watch)
        mark = reply.mark(REQUEST)
        self._working.add(question)
        if mark:
            self._marked[mark], reply.look_seconds = reply, ENDPOINT_LOOK_SECONDS
        reply.when_ended(lambda: self._forget(question, mark))
        try:
            asked = _read_question(inputs, reply.mark(CALLER))
            watch.asked(asked)
            answering = self._entry.answer(asked, question, span)
        except Exception as error:
            question.fail(error)
        else:
            reply.when_cancelled(lambda: self._loop.call(answering.cancel))

    def _forget(self, question: QuestionReply, mark: str) -> None:
        self._working.discard(question)
        self._marked.pop(mark, None)

    def failed(self, error: Exception, reply: Reply) -> None:
        tell_failed(self._publisher, error, reply.request_id, Span(reply.traceparent).trace_id)
        self._measures_of(reply).failed(self.contract.name, time.time() - reply.began, kind_of(error))

    def look(self) -> None:
        """What waits long introduces itself. A timer of the loop for each question would wake the loop's thread while the
        question's own is at work."""
        super().look()
        for question in list(self._working):
            if question.is_due:
                self._loop.call(question.introduce)

    def _measures_of(self, reply: Reply) -> Measures:
        """A request that a gateway measures is measured there alone: sums over both count each once."""
        return NO_MEASURES if self._measures.is_on and reply.is_measured else self._measures

    def _say_that_it_works(self) -> None:
        """The first message once more, now and then: a request may wait long for its turn, and its caller must not take
        it for lost."""
        for question in list(self._working):
            question.say_that_it_works()
        self._loop.later(WORKING_SECONDS.value, self._say_that_it_works)

    def finalize(self) -> None:
        self._loop.close()
        self._publisher.close()
        self._tracer.close()
        self._measures.close()
        super().finalize()


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
