"""OTLP metrics: names, units, bounds and attributes of the GenAI conventions, as a collector receives them."""

import logging

import pytest
from starlette.requests import Request

from otlp_collector import collecting
from videollama_client.request_state import traced
from videollama_core.protocol.errors import InvalidRequest, UnreadableMedia
from videollama_core.protocol.messages import Answer, Usage
from videollama_core.telemetry import meter, traces
from videollama_core.telemetry.meter import NO_METER, open_meter
from videollama_gateway.request_telemetry import RequestTelemetry, Telemetry

DURATION, FIRST, PER_TOKEN = (
    f"gen_ai.server.{name}" for name in ("request.duration", "time_to_first_token", "time_per_output_token")
)
BOUNDS = {  # from the conventions, by hand
    DURATION: (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    FIRST: (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    PER_TOKEN: (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
}
ASKED = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "videollama2", "gen_ai.request.model": "m"}
ANSWERED = ASKED | {"gen_ai.response.model": "m"}


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch):
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50000")  # milliseconds: `close` sends


@pytest.fixture
def collector():
    with collecting() as receiver:
        yield receiver


def sent(collector, name: str, service: str = "s") -> dict[frozenset, object]:
    return {frozenset(histogram.attributes): histogram for histogram in collector.histograms(name, service)}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_three_histograms_of_the_conventions(collector, protocol):
    address = collector.grpc if protocol == "grpc" else collector.http
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    meter = open_meter("s", asked)
    assert meter.is_on
    meter.answered("m", 1.0, 0.2, 5)
    meter.answered("m", 3.0, 0.3, 1)  # no token after the first
    meter.answered("m", 0.5, None, 0)  # no token at all
    meter.answered("m", -2.0, -1.0, 2)  # of a clock that was set back
    meter.failed("m", 0.015, "UnreadableMedia")
    meter.failed(None, 0.5, "InvalidRequest")
    meter.close()
    answered, key = {name: sent(collector, name) for name in BOUNDS}, frozenset(ANSWERED.items())
    for name, bounds in BOUNDS.items():
        one = answered[name][key]
        assert (one.unit, one.bounds, len(one.counts)) == ("s", bounds, len(bounds) + 1)
    assert [answered[name][key].count for name in BOUNDS] == [4, 3, 2]
    assert answered[DURATION][key].sum == pytest.approx(4.5) and answered[FIRST][key].sum == pytest.approx(0.5)
    assert answered[PER_TOKEN][key].sum == pytest.approx(0.2)
    assert answered[PER_TOKEN][key].counts[6] == 1  # a bucket holds its bound
    failed = frozenset((ASKED | {"error.type": "UnreadableMedia"}).items())
    unnamed = frozenset((ASKED | {"error.type": "InvalidRequest"}).items() - {("gen_ai.request.model", "m")})
    assert answered[DURATION].keys() == {key, failed, unnamed}  # answers alone have a first token
    assert answered[FIRST].keys() == answered[PER_TOKEN].keys() == {key}
    assert answered[DURATION][failed].counts[1] == 1 and answered[DURATION][unnamed].count == 1


def test_processes_of_one_name_are_distinguished_and_opentelemetrys_names_win(collector, monkeypatch):
    named = "service.instance.id=i"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", named)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    asked = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": collector.http + "/v1/metrics"}
    first = open_meter("s", asked | {"OTEL_RESOURCE_ATTRIBUTES": named, "OTEL_SERVICE_NAME": "mine"})
    first.failed("m", 0.1, "Overloaded")
    first.close()
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES")
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    second = open_meter("s", asked)
    second.failed("m", 0.1, "Overloaded")
    second.close()
    (mine,), (ours,) = collector.histograms(DURATION, "mine"), collector.histograms(DURATION, "s")
    assert mine.instance == "i" and len(ours.instance) == 36


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:4318/v1/traces"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://a:4318/v1/metrics"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_TRACES_EXPORTER": "none"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_METRICS_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_opentelemetrys_variables_turn_metrics_on_and_off(environment, asked):
    assert traces.is_asked_for(environment, "METRICS") is asked
    if not asked:
        assert open_meter("s", environment) is NO_METER


def test_missing_packages_are_reported_once_and_stop_nothing(monkeypatch, caplog):
    monkeypatch.setattr(meter, "can_trace", lambda: False)
    assert open_meter("s", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318"}) is NO_METER
    assert "no metrics are sent" in caplog.text


def watched(meter) -> RequestTelemetry:
    asked = Request({"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []})
    return RequestTelemetry(Telemetry(meter=meter), asked, "1")


def test_the_gateway_measures_each_request_once(collector, caplog):
    caplog.set_level(logging.ERROR)
    meter = open_meter("s", {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.http})
    answered, failed, unread = (watched(meter) for _ in range(3))
    answered.begin("m")
    answered.first_text()
    answered.answered(Answer("Hi", [1, 2, 3, 4], "stop", Usage(3, 0, 4), {}))
    answered.failed(None)  # its stream has ended
    failed.begin("m")
    failed.failed(UnreadableMedia("no video"))
    failed.failed(None)
    unread.failed(InvalidRequest("no JSON"))
    meter.close()
    durations = sent(collector, DURATION)
    assert sorted((dict(each).get("error.type", ""), one.count) for each, one in durations.items()) == [
        ("", 1),
        ("InvalidRequest", 1),
        ("UnreadableMedia", 1),
    ]
    assert [len(sent(collector, name)) for name in (FIRST, PER_TOKEN)] == [1, 1]
    assert answered.is_measured and not watched(NO_METER).is_measured


def test_a_caller_announces_that_it_measures():
    assert traced((), {"measured": True}) == (("x-vl2-measured", "1"),)
    assert traced((), {"measured": False}) == traced((), {}) == ()
    with pytest.raises(InvalidRequest, match="measured"):
        traced((), {"measured": "yes"})
