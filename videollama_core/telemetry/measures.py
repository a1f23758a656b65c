"""Metrics of answers under the names of OpenTelemetry's GenAI conventions. Nothing of OpenTelemetry is imported unless it is on."""

import logging
import os
from collections.abc import Mapping

from videollama_core.telemetry.traces import NONE, can_trace, is_asked_for

logger = logging.getLogger(__name__)


class Measures:
    """Takes what is measured of a request, once when it has ended. This one drops it: no metrics are sent."""

    is_on = False

    def answered(self, model: str, seconds: float, first_seconds: float | None, output_tokens: int) -> None:
        """A whole answer.

        Args:
            model: a name that the operator gave, never a caller's text.
            seconds: from the request to the end of its answer.
            first_seconds: to the first token or text; None where none came.
        """

    def failed(self, model: str | None, seconds: float, error: str) -> None:
        """A request without a whole answer.

        Args:
            model: None where it named none of ours, or could not be read.
            error: the kind of the error, "Cancelled" where the caller left.
        """

    def close(self) -> None:
        """Send what is left, for a second at most."""


NO_MEASURES = Measures()


def open_measures(
    service: str, environment: Mapping[str, str] = os.environ, resource: Mapping[str, str] = NONE
) -> Measures:
    """The measures of this process: sent where the environment asks for it and the packages are installed.

    Args:
        service: its name, unless OpenTelemetry's variables give one.
        resource: what else is said of this process.
    """
    if not is_asked_for(environment, "METRICS"):
        return NO_MEASURES
    if not can_trace():
        logger.warning("OTEL_* name a collector, and OpenTelemetry's packages are not installed: no metrics are sent")
        return NO_MEASURES
    from videollama_core.telemetry.otlp_measures import OtlpMeasures

    return OtlpMeasures(service, environment, resource)
