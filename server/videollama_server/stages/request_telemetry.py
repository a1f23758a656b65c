"""The telemetry of one request in the stages: metrics, spans and the log line. Times are Unix seconds."""

import logging
import time
from dataclasses import asdict
from typing import Any

from videollama_core.protocol.contract import ENTRY
from videollama_core.protocol.errors import (
    Cancelled,
    Overloaded,
    StageDied,
    StageFailed,
    StageRestarting,
    VideoLlamaError,
)
from videollama_core.telemetry import metric_definitions
from videollama_core.telemetry.logs import fields, logs_content
from videollama_core.telemetry.meter import NO_METER, Meter
from videollama_core.telemetry.traces import NO_SPAN, Span
from videollama_server.answers.answering import Piece, Summary
from videollama_server.stages.entry import Question
from videollama_server.stages.metrics import MetricsPublisher

logger = logging.getLogger(__name__)
QUESTION_METRICS = (
    metric_definitions.FIRST_TOKEN,
    metric_definitions.LATENCY,
    metric_definitions.PER_TOKEN,
    metric_definitions.STAGE,
    metric_definitions.PROMPT_TOKENS,
    metric_definitions.GENERATION_TOKENS,
    metric_definitions.REJECTED,
)
_PHASES = {
    metric_definitions.QUEUE: "queue",
    metric_definitions.PREFILL: "prefill",
    metric_definitions.DECODE: "decode",
}
GENERATION_METRICS = tuple(_PHASES)
TRACED_SERVICE = "videollama2-server"
# Failures of the server rather than of a caller. They are exported from 0 on: Prometheus sees no increase in a counter that
# first appears as 1, so a server's first failure would raise no alert.
SERVERS_FAULTS = tuple(kind.__name__ for kind in (Overloaded, StageFailed, StageRestarting, StageDied))


def kind_of(error: Exception) -> str:
    """The kind of an error; any other exception counts as StageFailed."""
    return error.kind if isinstance(error, VideoLlamaError) else StageFailed.__name__


def record_failure(publisher: MetricsPublisher, error: Exception, request_id: str, trace_id: str = "") -> None:
    """Count and log a question that failed."""
    reason = "cancelled" if isinstance(error, Cancelled) else kind_of(error)
    publisher.observe(metric_definitions.REJECTED, 1, reason)
    text = str(error) if logs_content() else None  # it may quote the question
    is_server_fault = not isinstance(error, VideoLlamaError) or isinstance(error, StageFailed)
    extra = fields(request_id=request_id, trace_id=trace_id, reason=reason, text=text)
    logger.log(logging.WARNING if is_server_fault else logging.INFO, "failed", extra=extra)


class QuestionTelemetry:
    """The telemetry of one question at the entry, from construction until `failed` or a piece with a summary."""

    def __init__(self, publisher: MetricsPublisher, span: Span, request_id: str, meter: Meter = NO_METER) -> None:
        self._publisher, self._span, self._meter, self._began = publisher, span, meter, time.time()
        self._first: float | None = None
        self._names = {"request_id": request_id, "trace_id": span.trace_id}
        self._about: dict[str, Any] = {}
        self._text: list[str] | None = [] if logs_content() else None

    def asked(self, question: Question) -> None:
        """Record the question, once its tensors are read."""
        self._about["media"] = question.kind
        if self._text is not None:
            self._about["question"] = question.conversation

    def piece(self, piece: Piece) -> None:
        """Record a piece of the answer."""
        if self._text is not None:
            self._text.append(piece.text)
        if self._first is None and piece.output_ids:
            self._first = time.time()
            self._publisher.observe(metric_definitions.FIRST_TOKEN, self._first - self._began)
        if piece.summary is not None:
            self._answered(piece.summary)

    def _answered(self, summary: Summary) -> None:
        now, observe, usage = time.time(), self._publisher.observe, summary.usage
        observe(metric_definitions.LATENCY, now - self._began)
        if self._first is not None and usage.completion_tokens > 1:
            observe(metric_definitions.PER_TOKEN, (now - self._first) / (usage.completion_tokens - 1))
        first_seconds = None if self._first is None else self._first - self._began
        self._meter.answered(ENTRY.name, now - self._began, first_seconds, usage.completion_tokens)
        for stage, seconds in summary.seconds.items():
            if seconds:  # the stage ran for this request
                observe(metric_definitions.STAGE, seconds, stage)
        observe(metric_definitions.PROMPT_TOKENS, usage.prompt_tokens + usage.media_tokens)
        observe(metric_definitions.GENERATION_TOKENS, usage.completion_tokens)
        self._span.end(
            attributes={
                "gen_ai.response.finish_reasons": [summary.finish_reason],
                "gen_ai.usage.input_tokens": usage.prompt_tokens + usage.media_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "vl2.media_tokens": usage.media_tokens,
            }
        )
        self._span, self._meter = NO_SPAN, NO_METER  # it has ended, even if sending the last piece fails
        self._about |= asdict(usage) | {"finish_reason": summary.finish_reason, "seconds": summary.seconds}
        if self._text is not None:
            self._about["answer"] = "".join(self._text)
        logger.info("answered", extra=fields(**self._names, **self._about))

    def failed(self, error: Exception) -> None:
        """End with an error."""
        self._span.end(kind_of(error))
        self._meter.failed(ENTRY.name, time.time() - self._began, kind_of(error))
        record_failure(self._publisher, error, **self._names)


class GenerationTelemetry:
    """The telemetry of one request at the language model: its queue, prefill and decode phases."""

    def __init__(self, publisher: MetricsPublisher, span: Span) -> None:
        self._publisher, self._span = publisher, span
        self._since = time.time()
        self._phase: metric_definitions.MetricDefinition | None = metric_definitions.QUEUE

    def admitted(self) -> None:
        self._next(metric_definitions.PREFILL)

    def token(self) -> None:
        if self._phase is metric_definitions.PREFILL:
            self._next(metric_definitions.DECODE)

    def ended(self) -> None:
        """End after the last token or an error; also an answer that a stop string ends."""
        if self._phase is metric_definitions.DECODE:
            self._next(None)
        elif self._phase is not None:
            self._span.child(_PHASES[self._phase], self._since, time.time(), {"vl2.left": True})
            self._phase = None

    def _next(self, phase: metric_definitions.MetricDefinition | None) -> None:
        now = time.time()
        if self._phase is not None:
            self._publisher.observe(self._phase, now - self._since)
            self._span.child(_PHASES[self._phase], self._since, now)
        self._phase, self._since = phase, now
