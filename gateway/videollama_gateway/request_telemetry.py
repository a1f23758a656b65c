"""The telemetry of one request at the gateway: its metrics, its span and its log line."""

import logging
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from videollama_core.protocol.errors import Cancelled, VideoLlamaError
from videollama_core.protocol.messages import Answer
from videollama_core.protocol.trace_context import TRACEPARENT, checked_traceparent
from videollama_core.telemetry.logs import fields, logs_content
from videollama_core.telemetry.meter import NO_METER, Meter
from videollama_core.telemetry.traces import NO_TRACER, Tracer
from videollama_gateway.api.completions import was_cached
from videollama_gateway.failures import status_of
from videollama_gateway.metrics import Metrics

logger = logging.getLogger(__name__)
_UNKNOWN = "unknown"  # the model label of a request for an unknown model, or that could not be parsed


@dataclass(frozen=True)
class Telemetry:
    """Where a gateway reports its requests: Prometheus, and OpenTelemetry's traces and metrics."""

    metrics: Metrics = field(default_factory=Metrics)
    tracer: Tracer = NO_TRACER
    meter: Meter = NO_METER

    def close(self) -> None:
        """Send what is pending."""
        self.tracer.close()
        self.meter.close()


class RequestTelemetry:
    """The telemetry of one request.

    Its span begins at construction, its metrics with `begin`. The first call of `answered` or `failed` ends both;
    further calls have no effect.
    """

    def __init__(self, telemetry: Telemetry, request: Request, request_id: str) -> None:
        route = request.scope["path"]
        about = {"http.request.method": request.method, "http.route": route, "gen_ai.operation.name": "chat"}
        parent = checked_traceparent(request.headers.get(TRACEPARENT))
        self._span = telemetry.tracer.begin(f"{request.method} {route}", parent, about | {"vl2.request_id": request_id})
        self._metrics, self._meter = telemetry.metrics, telemetry.meter
        self._request_id, self._model = request_id, _UNKNOWN
        self._began = time.perf_counter()
        self._content = logs_content()
        self._first: float | None = None
        self._begun = self._ended = False

    @property
    def traceparent(self) -> str | None:
        """The trace context to pass to the server."""
        return self._span.traceparent

    @property
    def is_measured(self) -> bool:
        """Whether the gateway reports its metrics to OpenTelemetry; the server must then not report them again."""
        return self._meter.is_on

    def begin(self, model: str | None) -> None:
        """Start the metrics once the request is parsed; `model` is None for an unknown one."""
        self._model, self._began, self._begun = model or _UNKNOWN, time.perf_counter(), True
        self._metrics.running.labels(self._model).inc()

    def first_text(self) -> None:
        """Record the time to the first token; it is counted when the request ends, so as not to delay that token."""
        if self._first is None:
            self._first = time.perf_counter()

    def answered(self, answer: Answer) -> None:
        """End with a complete answer."""
        if not self._end():
            return
        now, metrics, model, usage = time.perf_counter(), self._metrics, self._model, answer.usage
        metrics.latency.labels(model).observe(now - self._began)
        if self._first is not None and usage.completion_tokens > 1:
            metrics.per_token.labels(model).observe((now - self._first) / (usage.completion_tokens - 1))
        first_seconds = None if self._first is None else self._first - self._began
        self._meter.answered(model, now - self._began, first_seconds, usage.completion_tokens)
        for stage, seconds in answer.seconds.items():
            if seconds:  # the stage ran for this request
                metrics.stage.labels(model, stage).observe(seconds)
        prompt_tokens = usage.prompt_tokens + usage.media_tokens
        metrics.prompt_tokens.labels(model).inc(prompt_tokens)
        metrics.generated_tokens.labels(model).inc(usage.completion_tokens)
        if usage.media_tokens:
            metrics.cache_queries.labels(model).inc()
            metrics.cache_hits.labels(model).inc(was_cached(answer))
        self._span.end(
            attributes={
                "http.response.status_code": 200,
                "gen_ai.request.model": model,
                "gen_ai.response.finish_reasons": [answer.finish_reason],
                "gen_ai.usage.input_tokens": prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            }
        )
        self._log(
            logging.INFO,
            "answered",
            status=200,
            finish_reason=answer.finish_reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            seconds=round(now - self._began, 6),
            answer=answer.text if self._content else None,
        )

    def failed(self, error: VideoLlamaError | None) -> None:
        """End with an error; None means that the client disconnected."""
        if not self._end():
            return
        error = error or Cancelled("the client disconnected")
        status = status_of(error)[0]
        reason = "cancelled" if isinstance(error, Cancelled) else error.kind if status != 404 else "unknown_model"
        self._metrics.rejected.labels(self._model, reason).inc()
        named = None if self._model == _UNKNOWN else self._model
        self._meter.failed(named, time.perf_counter() - self._began, error.kind)
        self._span.end(error.kind, {"http.response.status_code": status, "gen_ai.request.model": self._model})
        level = logging.WARNING if status >= 500 else logging.INFO
        self._log(level, "failed", status=status, reason=reason, text=str(error) if self._content else None)

    def _log(self, level: int, message: str, **values: object) -> None:
        extra = fields(request_id=self._request_id, trace_id=self._span.trace_id, model=self._model, **values)
        logger.log(level, message, extra=extra)

    def _end(self) -> bool:
        if self._ended:
            return False
        self._ended = True
        if self._first is not None:
            self._metrics.first_token.labels(self._model).observe(self._first - self._began)
        if self._begun:
            self._metrics.running.labels(self._model).dec()
        return True
