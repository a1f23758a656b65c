"""The options of telemetry on the command line: the same for server and gateway."""

import functools
from collections.abc import Callable
from typing import Any

import click

from videollama_core.telemetry.logs import CONTENT_VARIABLE, FORMAT_VARIABLE, FORMATS, LogStyle

_OPTIONS = (
    click.option(
        "--otlp-endpoint",
        metavar="URL",
        help="Send traces and metrics to this OpenTelemetry collector, such as http://localhost:4318; the variables OTEL_* say the rest.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default=FORMATS[0],
        show_default=True,
        envvar=FORMAT_VARIABLE,
        help="Write log lines as text, or one JSON object a line.",
    ),
    click.option(
        "--log-content",
        is_flag=True,
        envvar=CONTENT_VARIABLE,
        help="Let questions, answers and texts of errors stand in the log; else they do not.",
    ),
)


def telemetry_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with --otlp-endpoint, --log-format and --log-content; it gets `otlp_endpoint` and `log_style`."""

    @functools.wraps(command)
    def told(log_format: str, log_content: bool, **others: Any) -> Any:
        return command(log_style=LogStyle(log_format, log_content), **others)

    for option in reversed(_OPTIONS):
        told = option(told)
    return told
