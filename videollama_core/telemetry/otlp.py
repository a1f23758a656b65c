"""Spans sent by OTLP with OpenTelemetry's SDK, whose variables (OTEL_*) choose protocol, headers, sampling and limits."""

import threading
import uuid
from collections.abc import Mapping

from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Tracer as OtelTracer

from videollama_core.telemetry.traces import ENDPOINT_VARIABLE, NONE, TRACES_VARIABLE, Attributes, Span, Tracer

_CLOSE_SECONDS = 2.0
_CANCELLED = "Cancelled"  # no failure: the caller disconnected
_INSTANCE = str(uuid.uuid4())  # of this process


def resource_of(service: str, environment: Mapping[str, str], more: Mapping[str, str]) -> Resource:
    """The resource attributes of this process; OpenTelemetry's variables take precedence over ours.

    Several servers share a name: without an instance id, a collector would take their counts for those of one.
    """
    named = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    ours = dict(more)
    if "OTEL_SERVICE_NAME" not in environment and SERVICE_NAME not in named:
        ours[SERVICE_NAME] = service
    if SERVICE_INSTANCE_ID not in named:
        ours[SERVICE_INSTANCE_ID] = _INSTANCE
    return Resource.create(ours)


def _exporter(environment: Mapping[str, str]) -> SpanExporter:
    common = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", common) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc(environment.get(TRACES_VARIABLE) or environment[ENDPOINT_VARIABLE])
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(environment.get(TRACES_VARIABLE) or environment[ENDPOINT_VARIABLE].rstrip("/") + "/v1/traces")


class OtlpTracer(Tracer):
    """Sends spans to the collector in batches, from a thread of the SDK: no request waits for it."""

    def __init__(self, service: str, environment: Mapping[str, str], resource: Mapping[str, str]) -> None:
        self._provider = TracerProvider(resource=resource_of(service, environment, resource))
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(environment)))
        self._tracer = self._provider.get_tracer("videollama2")

    def begin(self, name: str, parent: str | None, attributes: Attributes = NONE) -> Span:
        context = None if parent is None else set_span_in_context(_remote(parent))
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes)
        return _OtlpSpan(self._tracer, span)

    def under(self, parent: str | None) -> Span:
        return Span() if parent is None else _OtlpSpan(self._tracer, _remote(parent))

    def close(self) -> None:
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


class _OtlpSpan(Span):
    def __init__(self, tracer: OtelTracer, span: OtelSpan) -> None:
        context = span.get_span_context()
        super().__init__(f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}")
        self._tracer, self._span = tracer, span

    def child(self, name: str, began: float, ended: float, attributes: Attributes = NONE) -> None:
        begin, end = (int(moment * 1e9) for moment in (began, ended))
        context = set_span_in_context(self._span)
        self._tracer.start_span(name, context, attributes=attributes, start_time=begin).end(max(begin, end))

    def end(self, error: str | None = None, attributes: Attributes = NONE) -> None:
        if error is not None:
            attributes = {**attributes, "error.type": error}
            if error != _CANCELLED:
                self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.set_attributes(attributes)
        self._span.end()


def _remote(traceparent: str) -> NonRecordingSpan:
    _, trace, span, flags = traceparent.split("-")
    return NonRecordingSpan(SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(int(flags, 16) & 1)))
