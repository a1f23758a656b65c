"""docs/performance.md shows the recorded results, and no others."""

from videollama_benchmarks.performance_page import PAGE, put_into, render
from videollama_benchmarks.recording import RESULTS


def test_the_page_is_made_of_the_recorded_results():
    page = PAGE.read_text("utf-8")
    assert put_into(page, render()) == page, "run python -m videollama_benchmarks.performance_page"


def test_recorded_results_are_small():
    for path in RESULTS.glob("*.json"):
        assert path.stat().st_size < 50_000, path
