"""Spans of a request, in one trace from the gateway to every stage. Nothing of OpenTelemetry is imported unless it is on."""

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
    """A part of a trace. This one is nobody's: it hands its parent's `traceparent` on, and tells nothing."""

    def __init__(self, traceparent: str | None = None) -> None:
        self.traceparent = traceparent

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; "" where there is no trace."""
        return self.traceparent.split("-")[1] if self.traceparent else ""

    def child(self, name: str, began: float, ended: float, attributes: Attributes = NONE) -> None:
        """A whole part of this one, in Unix seconds."""

    def end(self, error: str | None = None, attributes: Attributes = NONE) -> None:
        """Once; `error` is its kind, "Cancelled" where nothing went wrong and the caller left."""


NO_SPAN = Span()


class Tracer:
    """Makes spans. This one makes none: tracing is off."""

    def begin(self, name: str, parent: str | None, attributes: Attributes = NONE) -> Span:
        """A span from now on, of the parent's trace or a new one.

        Args:
            parent: a checked `traceparent`.
        """
        return Span(parent)

    def under(self, parent: str | None) -> Span:
        """The parent itself, of another process, in order to add parts to it; its `end` does nothing."""
        return Span(parent)

    def close(self) -> None:
        """Send what is left, for two seconds at most."""


NO_TRACER = Tracer()


def is_asked_for(environment: Mapping[str, str], signal: Literal["TRACES", "METRICS"] = "TRACES") -> bool:
    """Whether OpenTelemetry's variables name a collector of traces, or of metrics."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or environment.get(f"OTEL_{signal}_EXPORTER") == "none":
        return False
    own = TRACES_VARIABLE if signal == "TRACES" else METRICS_VARIABLE
    return bool(environment.get(ENDPOINT_VARIABLE) or environment.get(own))


def with_endpoint(environment: Mapping[str, str], endpoint: str | None) -> dict[str, str]:
    """The environment of a process that sends traces and metrics there; None leaves what the variables say.

    Raises: InvalidRequest where the address is none, or the packages are not installed.
    """
    found = dict(environment)
    if endpoint is not None:
        if not re.fullmatch(r"https?://[^\s/]+\S*", endpoint):
            raise InvalidRequest(f"--otlp-endpoint is {endpoint!r}; wanted a URL such as http://localhost:4318")
        if not can_trace():
            raise InvalidRequest(
                "--otlp-endpoint needs OpenTelemetry's packages: pip install 'videollama2-service[otel]' (or '.[otel]')"
            )
        found.pop(TRACES_VARIABLE, None)
        found.pop(METRICS_VARIABLE, None)
        found[ENDPOINT_VARIABLE] = endpoint
    return found


def can_trace() -> bool:
    """Whether the packages are installed; none of them is imported."""
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:  # of a package around one of them
        return False


def open_tracer(
    service: str, environment: Mapping[str, str] = os.environ, resource: Mapping[str, str] = NONE
) -> Tracer:
    """The tracer of this process: one that sends spans where the environment asks for it and the packages are installed.

    Args:
        service: its name, unless OpenTelemetry's variables give one.
        resource: what else every span says of this process.
    """
    if not is_asked_for(environment):
        return Tracer()
    if not can_trace():
        logger.warning("OTEL_* name a collector, and OpenTelemetry's packages are not installed: no traces are sent")
        return Tracer()
    from videollama_core.telemetry.otlp import OtlpTracer

    return OtlpTracer(service, environment, resource)
