"""What a stage publishes: counters, gauges and histograms, in files that are read as one."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from videollama_core.telemetry.exposition import UNFINISHED, Exposition, joined
from videollama_core.telemetry.metric_definitions import MetricDefinition
from videollama_server.stages import metrics

COUNT, RUNNING = MetricDefinition("a_total", "Counted"), MetricDefinition("running", "Now")
SECONDS, REFUSED = (
    MetricDefinition("s", "Took", (0.1, 1.0)),
    MetricDefinition("refused_total", "No", labels=("reason",)),
)
STAGES = (("one", 1), ("two", 2))


def read(text: str) -> dict[str, tuple[str, dict[tuple[str, ...], float]]]:
    """Family -> kind, and its samples by their labels' values."""
    return {
        family.name: (family.type, {(one.name, *sorted(one.labels.values())): one.value for one in family.samples})
        for family in text_string_to_metric_families(text)
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, value in metrics.metrics_environment(tmp_path / "stage-metrics").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "stage-metrics"


def test_monotonic_metrics_are_counters_and_others_gauges(folder):
    """Counters were once published as gauges, which made `rate()` over them meaningless."""
    now = {COUNT: 3, RUNNING: 5}
    publisher = metrics.MetricsPublisher(
        "stage", tuple(metrics.PolledMetric(one, lambda one=one: now[one]) for one in now)
    )
    publisher.close()
    for values in ((3, 5), (10, 2), (10, 0)):
        now.update(zip(now, values, strict=True))
        publisher._publish()
        families = read((folder / "stage").read_text("utf-8"))
        assert families == {
            "a": ("counter", {("a_total", "videollama2"): values[0]}),
            "running": ("gauge", {("running", "videollama2"): values[1]}),
        }


def test_reported_values_are_published_later_and_in_order(folder):
    publisher = metrics.MetricsPublisher("stage", (), (SECONDS, REFUSED))
    publisher.close()
    assert (
        read((folder / "stage").read_text("utf-8"))["s"][1]["s_count", "videollama2"] == 0
    )  # there before anything happened
    for value in (0.5, -1.0, 0.1, 7.0):  # one is of a clock that was set back; a bucket holds its bound
        publisher.observe(SECONDS, value)
    publisher.observe(REFUSED, 1, "Overloaded")
    publisher.observe(REFUSED, 1, "Overloaded")
    publisher._publish()
    families = read((folder / "stage").read_text("utf-8"))
    buckets = {bound: families["s"][1]["s_bucket", bound, "videollama2"] for bound in ("0.1", "1.0", "+Inf")}
    assert buckets == {"0.1": 2, "1.0": 3, "+Inf": 4}
    assert families["s"][1]["s_sum", "videollama2"] == pytest.approx(7.6) and families["s"][0] == "histogram"
    assert families["refused"][1] == {("refused_total", "Overloaded", "videollama2"): 2}


def test_a_metric_of_two_stages_has_one_help_line(folder):
    for stage, count in STAGES:
        metrics.publish_running(stage, count)
    other = Exposition("videollama2", (COUNT,)).text()
    text = joined([*(file.read_text("utf-8") for file in folder.iterdir()), other])
    assert text.count("# TYPE vl2_running_requests gauge") == 1 and len(read(text)) == 2
    assert read(text)["vl2_running_requests"][1] == {("vl2_running_requests", name): count for name, count in STAGES}
    assert not [file for file in folder.iterdir() if file.name.endswith(UNFINISHED)]


def test_metrics_that_could_not_be_written_are_written_later(folder):
    """On a full disk, the thread that publishes them ended."""
    folder.rename(folder.with_name("away"))
    publisher = metrics.MetricsPublisher("stage", (metrics.PolledMetric(COUNT, lambda: 3),))
    assert not metrics.publish_running("stage", 1)
    folder.with_name("away").rename(folder)
    assert metrics.publish_running("stage", 1)
    deadline = time.monotonic() + 10
    while not (folder / "stage").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    publisher.close()


def test_without_a_folder_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.delenv(metrics.FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    metrics.publish("stage", "")
    assert not list(tmp_path.iterdir())
