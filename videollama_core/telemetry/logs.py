"""Log lines of server and gateway: text, or one JSON object per line. What callers send is logged only on request."""

import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

FORMAT_VARIABLE, CONTENT_VARIABLE = "VL2_LOG_FORMAT", "VL2_LOG_CONTENT"
TEXT, JSON = FORMATS = ("text", "json")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_FIELDS = "vl2_fields"  # attribute of a record: its fields besides the message


@dataclass(frozen=True)
class LogStyle:
    """How a process and its child processes write log lines.

    Args:
        content: whether to log questions, answers, and error texts, which quote them.
    """

    format: str = TEXT
    content: bool = False

    def environment(self) -> dict[str, str]:
        """Variables that pass the style to child processes."""
        return {FORMAT_VARIABLE: self.format, CONTENT_VARIABLE: str(int(self.content))}

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "LogStyle":
        """The style that the environment names; text without content by default."""
        return cls(environment.get(FORMAT_VARIABLE, TEXT), environment.get(CONTENT_VARIABLE) == "1")


@cache
def logs_content() -> bool:
    """Whether this process logs what callers send; its environment is read once."""
    return LogStyle.of().content


class LogFormatter(logging.Formatter):
    """Escapes control characters and indents the further lines of a record (of a traceback, or forged), so that only the
    program itself can begin a line."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record) + "".join(f" {name}={_word(value)}" for name, value in _fields(record).items())
        return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text).replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `process`, `message`, the record's further fields, and `error` for an exception.

    Args:
        process: name of the process that writes.
        content: whether to include the text of an exception, which may quote what a caller sent.
    """

    def __init__(self, process: str, content: bool) -> None:
        super().__init__()
        self._process, self._content = process, content

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": self._process,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = self._error(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True, default=str)

    def _error(self, error: BaseException) -> dict[str, Any]:
        frames = traceback.extract_tb(error.__traceback__)
        entry: dict[str, Any] = {
            "type": type(error).__name__,
            "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
        }
        return entry | ({"text": str(error)} if self._content else {})


def log_to_stderr(level: int | str, form: str, process: str, style: LogStyle | None = None) -> None:
    """Send the records of all loggers of this process to stderr: in `form` (logging.Formatter's), or as JSON.

    Args:
        style: None for the one that the environment names.
    """
    style = style or LogStyle.of()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process, style.content) if style.format == JSON else LogFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])


def fields(**values: Any) -> dict[str, Any]:
    """For `extra` of a logging call: the record's fields besides its message; None and "" are left out."""
    return {_FIELDS: {name: value for name, value in values.items() if value not in (None, "")}}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    values: dict[str, Any] = getattr(record, _FIELDS, {})
    return values


def _word(value: Any) -> str:
    return value if isinstance(value, str) and value and " " not in value else json.dumps(value, default=str)
