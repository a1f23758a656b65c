"""Disabled tracing costs nothing, and ignores invalid headers; unmet requests for tracing are reported."""

import subprocess
import sys

import pytest

from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.trace_context import checked_traceparent
from videollama_core.telemetry import traces

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (GOOD, True),
        ("", False),
        (None, False),
        (GOOD.upper(), False),
        (GOOD + "\n", False),
        (GOOD + "-more", False),
        ("ff" + GOOD[2:], False),
        ("00-" + "0" * 32 + GOOD[35:], False),
        (GOOD[:36] + "0" * 16 + "-01", False),
    ],
)
def test_only_w3c_headers_are_a_traceparent(text, good):
    assert checked_traceparent(text) == (text if good else None)


def test_a_process_without_tracing_imports_no_sdk_and_forwards_the_trace():
    script = (
        "import sys; from videollama_core.telemetry.traces import open_tracer, with_endpoint;"
        "from videollama_core.telemetry.meter import NO_METER, open_meter;"
        "import videollama_gateway.app, videollama_server.supervisor;"
        f"tracer = open_tracer('x', with_endpoint({{}}, None)); span = tracer.begin('a', {GOOD!r}, dict(b=1));"
        f"assert span.traceparent == tracer.under({GOOD!r}).traceparent == {GOOD!r};"
        "assert open_meter('x', {}) is NO_METER;"
        "span.child('c', 0, 1); span.end('StageFailed'); tracer.close();"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_opentelemetrys_variables_turn_it_on_and_off(environment, asked):
    assert traces.is_asked_for(environment) is asked


def test_the_option_wins_over_the_variables():
    before = {f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT": "http://a/x" for signal in ("TRACES", "METRICS")}
    before["OTEL_SERVICE_NAME"] = "mine"
    environment = traces.with_endpoint(before, "http://b:4318")
    assert environment == {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:4318", "OTEL_SERVICE_NAME": "mine"}


@pytest.mark.parametrize("endpoint", ["", "localhost:4318", "file:///x", "http://"])
def test_an_address_that_is_not_a_url_is_refused(endpoint):
    with pytest.raises(InvalidRequest, match="--otlp-endpoint"):
        traces.with_endpoint({}, endpoint)


def test_an_option_without_the_packages_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setattr(traces, "_NEEDED", ("opentelemetry.nowhere.at_all",))
    with pytest.raises(InvalidRequest, match=r"videollama2-service\[otel\]"):
        traces.with_endpoint({}, "http://b:4318")
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}  # by an environment that is the same for all programs
    assert type(traces.open_tracer("x", asked)) is traces.Tracer and "not installed" in caplog.text
