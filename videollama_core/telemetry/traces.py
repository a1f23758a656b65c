"""Spans of a request, in one trace from the gateway to every stage. OpenTelemetry is imported only when enabled."""

import logging
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from videollama_core.protocol.errors import InvalidRequest

logger = logging.getLogger(__name__)
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"  # OpenTelemetry's own
TRACES_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
METRICS_VARIABLE = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http", "opentelemetry.exporter.otlp.proto.grpc")


Attributes = Mapping[str, Any]
NONE: Mapping[str, Any] = {}


class Span:
    """A part of a trace. This base class records nothing and passes its parent's `traceparent` on."""

    def __init__(self, traceparent: str | None = None) -> None:
        self.traceparent = traceparent

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; "" if there is no trace."""
        return self.traceparent.split("-")[1] if self.traceparent else ""

    def child(self, name: str, began: float, ended: float, attributes: Attributes = NONE) -> None:
        """Add a finished child span; `began` and `ended` are Unix seconds."""

    def end(self, error: str | None = None, attributes: Attributes = NONE) -> None:
        """End the span, once. `error` is its kind; "Cancelled" if nothing failed and the caller disconnected."""


NO_SPAN = Span()


class Tracer:
    """Creates spans. This base class creates none: tracing is off."""

    def begin(self, name: str, parent: str | None, attributes: Attributes = NONE) -> Span:
        """Start a span now, in the parent's trace or in a new one.

        Args:
            parent: a checked `traceparent`.
        """
        return Span(parent)

    def under(self, parent: str | None) -> Span:
        """The parent itself, a span of another process, so that children can be added; its `end` does nothing."""
        return Span(parent)

    def close(self) -> None:
        """Send what is pending, for at most two seconds."""


NO_TRACER = Tracer()


def is_asked_for(environment: Mapping[str, str], signal: Literal["TRACES", "METRICS"] = "TRACES") -> bool:
    """Whether OpenTelemetry's variables name a collector for traces, or for metrics."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or environment.get(f"OTEL_{signal}_EXPORTER") == "none":
        return False
    own = TRACES_VARIABLE if signal == "TRACES" else METRICS_VARIABLE
    return bool(environment.get(ENDPOINT_VARIABLE) or environment.get(own))


def with_endpoint(environment: Mapping[str, str], endpoint: str | None) -> dict[str, str]:
    """The environment of a process that sends traces and metrics to `endpoint`; None keeps the variables as they are.

    Raises: InvalidRequest if `endpoint` is not a URL, or the packages are not installed.
    """
    changed = dict(environment)
    if endpoint is not None:
        if not re.fullmatch(r"https?://[^\s/]+\S*", endpoint):
            raise InvalidRequest(f"--otlp-endpoint is {endpoint!r}; expected a URL such as http://localhost:4318")
        if not can_trace():
            raise InvalidRequest(
                "--otlp-endpoint needs OpenTelemetry's packages: pip install 'videollama2-service[otel]' (or '.[otel]')"
            )
        changed.pop(TRACES_VARIABLE, None)
        changed.pop(METRICS_VARIABLE, None)
        changed[ENDPOINT_VARIABLE] = endpoint
    return changed


def can_trace() -> bool:
    """Whether OpenTelemetry's packages are installed; does not import them."""
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:  # a parent package is missing
        return False


def open_tracer(
    service: str, environment: Mapping[str, str] = os.environ, resource: Mapping[str, str] = NONE
) -> Tracer:
    """The tracer of this process; it sends spans if the environment asks for it and the packages are installed.

    Args:
        service: name of the service, unless OpenTelemetry's variables set one.
        resource: further resource attributes.
    """
    if not is_asked_for(environment):
        return Tracer()
    if not can_trace():
        logger.warning("OTEL_* name a collector, but OpenTelemetry's packages are not installed: no traces are sent")
        return Tracer()
    from videollama_core.telemetry.otlp import OtlpTracer

    return OtlpTracer(service, environment, resource)
