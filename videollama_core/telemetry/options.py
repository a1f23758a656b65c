"""The command-line options of telemetry, shared by server and gateway."""

import functools
from collections.abc import Callable
from typing import Any

import click

from videollama_core.telemetry.logs import CONTENT_VARIABLE, FORMAT_VARIABLE, FORMATS, LogStyle

_OPTIONS = (
    click.option(
        "--otlp-endpoint",
        metavar="URL",
        help="Send traces and metrics to this OpenTelemetry collector, such as http://localhost:4318; the OTEL_* variables configure the rest.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default=FORMATS[0],
        show_default=True,
        envvar=FORMAT_VARIABLE,
        help="Write log lines as text, or as one JSON object per line.",
    ),
    click.option(
        "--log-content",
        is_flag=True,
        envvar=CONTENT_VARIABLE,
        help="Include questions, answers and error texts in the log; they are left out by default.",
    ),
)


def telemetry_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --otlp-endpoint, --log-format and --log-content to a command; it receives `otlp_endpoint` and `log_style`."""

    @functools.wraps(command)
    def with_options(log_format: str, log_content: bool, **others: Any) -> Any:
        return command(log_style=LogStyle(log_format, log_content), **others)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
