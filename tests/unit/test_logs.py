"""JSON log lines: one object per line, whatever a caller sends, with request content only where it is enabled."""

import json
import logging
import sys

import pytest

from videollama_core.telemetry.logs import JsonFormatter, LogFormatter, LogStyle, fields

HOSTILE = 'x\n{"level": "forged"}\r\x1b[2J\u2028\x00'


def record(message: str, *words: object, error=None, **attributes: object) -> logging.LogRecord:
    made = logging.LogRecord("n", logging.WARNING, "f", 1, message, words, error)
    made.__dict__.update(fields(**attributes))
    return made


def failure():
    try:
        raise ValueError("the caller's own secret")
    except ValueError:
        return sys.exc_info()


@pytest.mark.parametrize("form", [JsonFormatter("entry", content=True), LogFormatter("%(levelname)s %(message)s")])
def test_no_caller_can_start_a_log_line(form):
    lines = form.format(record("of %s", HOSTILE, request_id=HOSTILE, error=failure())).split("\n")
    assert all(line.startswith("    ") for line in lines[1:])
    assert len("\n".join(lines).splitlines()) == len(lines)


def test_a_line_has_the_records_fields_and_no_more():
    line = json.loads(JsonFormatter("entry", content=False).format(record("answered", request_id=HOSTILE, trace_id="")))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "WARNING", "process": "entry", "message": "answered", "request_id": HOSTILE}


@pytest.mark.parametrize("content", [False, True])
def test_the_text_of_an_exception_is_content(content):
    text = JsonFormatter("entry", content).format(record("stage", error=failure()))
    error = json.loads(text)["error"]
    assert error["type"] == "ValueError" and "test_logs.py" in error["frames"][0] and "failure" in error["frames"][0]
    assert ("secret" in text) is content


def test_text_lines_name_the_records_fields():
    text = LogFormatter("%(message)s").format(record("answered", request_id="a", seconds={"total": 0.5}, media=None))
    assert text == 'answered request_id=a seconds={"total": 0.5}'


@pytest.mark.parametrize("style", [LogStyle(), LogStyle("json"), LogStyle("json", True), LogStyle("text", True)])
def test_the_log_style_is_inherited_by_processes(style):
    assert LogStyle.of(style.environment()) == style
    assert LogStyle.of({}) == LogStyle("text", content=False)
