"""The server metrics of OpenTelemetry's GenAI conventions, sent by OTLP with OpenTelemetry's SDK.

Names, units, bounds and attributes are those of the semantic conventions v1.41.0 (docs/gen-ai/gen-ai-metrics.md; status: development), the
last release to contain them; they have moved to semantic-conventions-genai.
"""

import threading
from collections.abc import Mapping

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader

from videollama_core.telemetry.meter import Meter
from videollama_core.telemetry.otlp import resource_of
from videollama_core.telemetry.traces import ENDPOINT_VARIABLE, METRICS_VARIABLE

PROVIDER = "videollama2"  # not among the conventions' known values
_CLOSE_SECONDS = 1.0
_REQUEST_BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


def _exporter(environment: Mapping[str, str]) -> MetricExporter:
    common = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    own = environment.get(METRICS_VARIABLE)
    if environment.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", common) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        return Grpc(own or environment[ENDPOINT_VARIABLE])
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

    return Http(own or environment[ENDPOINT_VARIABLE].rstrip("/") + "/v1/metrics")


class OtlpMeter(Meter):
    """Histograms that a thread of the SDK sends periodically (OTEL_METRIC_EXPORT_INTERVAL): no request waits for it."""

    is_on = True

    def __init__(self, service: str, environment: Mapping[str, str], resource: Mapping[str, str]) -> None:
        reader = PeriodicExportingMetricReader(_exporter(environment))
        about = resource_of(service, environment, resource)
        self._provider = MeterProvider((reader,), about, shutdown_on_exit=False)
        make = self._provider.get_meter("videollama2").create_histogram
        self._request = make(
            "gen_ai.server.request.duration",
            "s",
            "From a request to the end of its answer, or to its error.",
            explicit_bucket_boundaries_advisory=_REQUEST_BOUNDS,
        )
        self._first = make(
            "gen_ai.server.time_to_first_token",
            "s",
            "From a request to the first text of its answer; complete answers only.",
            explicit_bucket_boundaries_advisory=_FIRST_BOUNDS,
        )
        self._per_token = make(
            "gen_ai.server.time_per_output_token",
            "s",
            "Mean time per token of a complete answer after the first.",
            explicit_bucket_boundaries_advisory=_TOKEN_BOUNDS,
        )

    def answered(self, model: str, seconds: float, first_seconds: float | None, output_tokens: int) -> None:
        about = {**_about(model), "gen_ai.response.model": model}
        self._request.record(max(seconds, 0.0), about)  # a clock may have been set back
        if first_seconds is not None:
            self._first.record(max(first_seconds, 0.0), about)
            if output_tokens > 1:
                self._per_token.record(max(seconds - first_seconds, 0.0) / (output_tokens - 1), about)

    def failed(self, model: str | None, seconds: float, error: str) -> None:
        self._request.record(max(seconds, 0.0), {**_about(model), "error.type": error})

    def close(self) -> None:
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


def _about(model: str | None) -> dict[str, str]:
    about = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": PROVIDER}
    return about if model is None else {**about, "gen_ai.request.model": model}
