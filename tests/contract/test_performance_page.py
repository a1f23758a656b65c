"""docs/performance.md shows exactly the recorded results."""

import json

import pytest

from videollama_benchmarks.performance_page import PAGE, updated
from videollama_benchmarks.performance_plots import FOLDER, PLOTS, digest, draw_all
from videollama_benchmarks.recording import RESULTS

HINT = "run python -m videollama_benchmarks.performance_page"


def test_the_page_shows_the_recorded_results():
    page = PAGE.read_text("utf-8")
    assert updated(page) == page, HINT


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_drawn_from_the_recorded_result_and_shown(name):
    result = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    assert digest(result) in (FOLDER / f"{name}.svg").read_text("utf-8"), HINT
    assert f"](plots/{name}.svg)" in PAGE.read_text("utf-8")


def test_every_plot_can_be_drawn(tmp_path):
    for path in draw_all(tmp_path):
        assert path.read_text("utf-8").count("<path") > 10


def test_recorded_results_are_small():
    for path in RESULTS.glob("*.json"):
        assert path.stat().st_size < 50_000, path
