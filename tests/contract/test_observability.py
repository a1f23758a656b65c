"""The documentation's table, the dashboard and the rules use existing metrics with their existing labels."""

import json
import re

import pytest
import yaml

from conftest import ROOT
from videollama_core.protocol.contract import RUNNING_METRIC
from videollama_core.telemetry import metric_definitions
from videollama_core.telemetry.metric_definitions import MODEL_LABEL, MetricDefinition

FOLDER = ROOT / "deploy/observability"
OURS = {item.name: item for item in vars(metric_definitions).values() if isinstance(item, MetricDefinition)}
OF_PROMETHEUS = {"job", "instance", "le"}
LABELS = {name: {MODEL_LABEL, *definition.labels} for name, definition in OURS.items()} | {RUNNING_METRIC: {"model"}}
SUFFIXES = ("_bucket", "_sum", "_count")


def dashboard_queries() -> list[str]:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
    variables = [each["query"] for each in dashboard["templating"]["list"]]
    return [*variables, *(query["expr"] for panel in dashboard["panels"] for query in panel["targets"])]


def rules(name: str) -> list[dict]:
    return [rule for group in yaml.safe_load((FOLDER / name).read_text("utf-8"))["groups"] for rule in group["rules"]]


QUERIES = {
    "dashboard.json": dashboard_queries(),
    "alerts.yml": [rule["expr"] for rule in rules("alerts.yml")],
    "vllm_names.yml": [rule["expr"] for rule in rules("vllm_names.yml")],
}


def metric_of(name: str) -> str:
    """The metric that a series belongs to. Raises: KeyError where there is none."""
    if name in LABELS:
        if name in OURS and OURS[name].kind == "histogram":
            raise KeyError(f"{name} is a histogram; its series end in {', '.join(SUFFIXES)}")
        return name
    base = re.sub(rf"({'|'.join(SUFFIXES)})$", "", name)
    if base not in OURS or OURS[base].kind != "histogram":
        raise KeyError(name)
    return base


@pytest.mark.parametrize("file", QUERIES)
def test_queries_use_published_metrics(file):
    assert len(QUERIES[file]) > 7
    for query in QUERIES[file]:
        named = re.findall(r"\bvl2_\w+", query)
        assert named or re.search(r"\b(nv_trt_llm_|up\{)", query), query
        for name in named:
            metric_of(name)


@pytest.mark.parametrize("file", QUERIES)
def test_queries_use_existing_labels(file):
    for query in QUERIES[file]:
        known = OF_PROMETHEUS.union(*(LABELS[metric_of(name)] for name in re.findall(r"\bvl2_\w+", query)))
        used = set(re.findall(r"(\w+)\s*=~?\"", query))
        for group in re.findall(r"\b(?:by|ignoring|on) \(([\w, ]+)\)", query):
            used |= set(re.split(r",\s*", group))
        assert used <= known, query


def test_counters_are_queried_by_rate():
    for file in ("dashboard.json", "alerts.yml"):
        for query in QUERIES[file]:
            for name in re.findall(r"\bvl2_\w+(?=[{\[])", query):
                if name.endswith(("_total", *SUFFIXES)):
                    assert re.search(rf"(rate|increase)\({name}[{{\[]", query), query


def test_reasons_in_alerts_are_error_kinds():
    from videollama_core.protocol import errors

    for query in QUERIES["alerts.yml"]:
        for reasons in re.findall(r'reason=~?"([\w|]+)"', query):
            for reason in reasons.split("|"):
                assert issubclass(getattr(errors, reason), errors.VideoLlamaError)


def test_counters_used_by_alerts_start_at_zero():
    """Prometheus sees no increase in a counter whose first value is 1."""
    from videollama_server.stages.request_telemetry import SERVERS_FAULTS

    wanted = [
        set(reasons.split("|"))
        for query in QUERIES["alerts.yml"]
        for reasons, job in re.findall(r'reason=~?"([\w|]+)", job="([\w-]+)"', query)
        if job == "videollama2"
    ]
    assert len(wanted) == 2 and set.union(*wanted) == set(SERVERS_FAULTS)


def test_the_table_lists_exactly_the_published_metrics():
    page = (ROOT / "docs/observability.md").read_text("utf-8")
    rows = {name: kind for name, kind in re.findall(r"^\| `(vl2_\w+)` \| (\w+) \|", page, re.MULTILINE)}
    assert rows == {name: definition.kind for name, definition in OURS.items()} | {RUNNING_METRIC: "gauge"}


def test_other_files_use_published_metrics():
    """Manifests that scale by a metric, and the documents."""
    files = [path for folder in ("deploy", "docker", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix in (".yml", ".yaml", ".json", ".md") and path.name != "log.md"]
    assert len(files) > 15
    known = {*LABELS, *(name + suffix for name, each in OURS.items() if each.buckets for suffix in SUFFIXES)}
    for path in files:
        for name in re.findall(r"\bvl2_\w+[a-z]\b", path.read_text("utf-8")):
            assert any(each == name for each in known) or name.startswith("vl2_bench"), f"{path}: {name}"
