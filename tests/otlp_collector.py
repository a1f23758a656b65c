"""A collector of OpenTelemetry traces and metrics in this process, by OTLP over HTTP and gRPC; it stores what it receives."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metric_messages
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass(frozen=True)
class Span:
    """Times in nanoseconds since 1970."""

    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    service: str
    failed: bool
    attributes: dict


@dataclass(frozen=True)
class Histogram:
    """One series, as it was sent last; it counts from its process's start.

    Args:
        attributes: sorted pairs.
        counts: one more than bounds.
    """

    name: str
    service: str
    instance: str
    attributes: tuple[tuple[str, object], ...]
    unit: str
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass
class Collector:
    http: str = ""  # URLs to send to
    grpc: str = ""
    spans: list[Span] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    series: dict[tuple, Histogram] = field(default_factory=dict)

    def take(self, request: messages.ExportTraceServiceRequest) -> None:
        self.raw.append(request.SerializeToString())
        for group in request.resource_spans:
            resource = _values(group.resource.attributes)
            for span in (one for scope in group.scope_spans for one in scope.spans):
                self.spans.append(
                    Span(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        resource["service.name"],
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        _values(span.attributes),
                    )
                )

    def take_metrics(self, request: metric_messages.ExportMetricsServiceRequest) -> None:
        self.raw.append(request.SerializeToString())
        for group in request.resource_metrics:
            resource = _values(group.resource.attributes)
            for metric in (one for scope in group.scope_metrics for one in scope.metrics):
                histogram = metric.histogram
                assert histogram.aggregation_temporality == 2  # cumulative
                for point in histogram.data_points:
                    series = Histogram(
                        metric.name,
                        resource["service.name"],
                        resource["service.instance.id"],
                        tuple(sorted(_values(point.attributes).items())),
                        metric.unit,
                        tuple(point.explicit_bounds),
                        tuple(point.bucket_counts),
                        point.sum,
                    )
                    self.series[series.name, series.service, series.instance, series.attributes] = series

    def histograms(self, name: str, service: str) -> list[Histogram]:
        return [
            histogram
            for histogram in list(self.series.values())
            if (histogram.name, histogram.service) == (name, service)
        ]

    def of(self, trace: str, wanted: int) -> dict[str, Span]:
        """The spans of a trace by name, each name once, as soon as that many have arrived."""
        spans = self.wait(lambda: [span for span in self.spans if span.trace == trace], wanted)
        assert len({span.name for span in spans}) == len(spans), spans
        return {span.name: span for span in spans}

    def wait(self, look: Callable[[], list[Span]], wanted: int) -> list[Span]:
        deadline = time.monotonic() + 30
        while len(spans := look()) < wanted:
            assert time.monotonic() < deadline, spans
            time.sleep(0.05)
        return spans


def _values(attributes) -> dict:
    def value(one):
        kind = one.WhichOneof("value")
        content = getattr(one, kind)
        return [value(each) for each in content.values] if kind == "array_value" else content

    return {each.key: value(each.value) for each in attributes}


@contextmanager
def collecting():
    """A collector that listens on two ports of its own."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/x-protobuf"
            if self.path == "/v1/metrics":
                collector.take_metrics(metric_messages.ExportMetricsServiceRequest.FromString(body))
            else:
                assert self.path == "/v1/traces"
                collector.take(messages.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    class Service(TraceServiceServicer):
        def Export(self, request, context):
            collector.take(request)
            return messages.ExportTraceServiceResponse()

    class Metrics(MetricsServiceServicer):
        def Export(self, request, context):
            collector.take_metrics(request)
            return metric_messages.ExportMetricsServiceResponse()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(Service(), server)
    add_MetricsServiceServicer_to_server(Metrics(), server)
    collector.http = f"http://127.0.0.1:{http.server_address[1]}"
    collector.grpc = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
        http.shutdown()
        http.server_close()
