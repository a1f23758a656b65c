"""Metrics of answers under the names of OpenTelemetry's GenAI conventions. OpenTelemetry is imported only when enabled."""

import logging
import os
from collections.abc import Mapping

from videollama_core.telemetry.traces import NONE, can_trace, is_asked_for

logger = logging.getLogger(__name__)


class Meter:
    """Records the metrics of each request, once it has ended. This base class discards them."""

    is_on = False

    def answered(self, model: str, seconds: float, first_seconds: float | None, output_tokens: int) -> None:
        """Record a complete answer.

        Args:
            model: a name set by the operator, never a caller's text.
            seconds: from the request to the end of its answer.
            first_seconds: from the request to the first token or text; None if there was none.
        """

    def failed(self, model: str | None, seconds: float, error: str) -> None:
        """Record a request without a complete answer.

        Args:
            model: None if the request named an unknown one, or could not be read.
            seconds: from the request to its error.
            error: the kind of the error; "Cancelled" if the caller disconnected.
        """

    def close(self) -> None:
        """Send what is pending, for at most one second."""


NO_METER = Meter()


def open_meter(service: str, environment: Mapping[str, str] = os.environ, resource: Mapping[str, str] = NONE) -> Meter:
    """The meter of this process; it sends if the environment asks for it and the packages are installed.

    Args:
        service: name of the service, unless OpenTelemetry's variables set one.
        resource: further resource attributes.
    """
    if not is_asked_for(environment, "METRICS"):
        return NO_METER
    if not can_trace():
        logger.warning("OTEL_* name a collector, but OpenTelemetry's packages are not installed: no metrics are sent")
        return NO_METER
    from videollama_core.telemetry.otlp_meter import OtlpMeter

    return OtlpMeter(service, environment, resource)
