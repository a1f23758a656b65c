"""Draws the plots of docs/performance.md from the recorded results, as SVG files in docs/plots."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

from videollama_benchmarks.recording import RESULTS, TREE

matplotlib.use("Agg")
FOLDER = TREE / "docs/plots"
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "videollama2", "font.family": "sans-serif", "font.size": 9}
Result = Mapping[str, Any]


def digest(result: Result) -> str:
    """Identifies the tables that a plot was drawn from; it is stored in the plot."""
    return hashlib.sha256(json.dumps(result["tables"], sort_keys=True).encode()).hexdigest()[:32]


def draw_all(folder: Path = FOLDER, results: Path = RESULTS) -> list[Path]:
    """Draw every plot. Returns: their paths."""
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in PLOTS.items():
        result = json.loads((results / f"{name}.json").read_text("utf-8"))
        with matplotlib.rc_context(_SETTINGS):
            figure = draw(result)
            paths.append(folder / f"{name}.svg")
            figure.savefig(paths[-1], metadata={"Date": None, "Description": digest(result)})
            pyplot.close(figure)
    return paths


def _rows(result: Result, place: int) -> list[dict[str, Any]]:
    table = result["tables"][place]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _draw_callers(result: Result) -> Any:
    """Answers per second over the number of callers, relative to the plain loop."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    rows = [row for row in _rows(result, 0) if row["asked by"] != "plain loop"]
    for about in dict.fromkeys(row["question about"] for row in rows):
        chosen = [row for row in rows if row["question about"] == about]
        callers = [int(row["asked by"].split()[0]) for row in chosen]
        axes.plot(callers, [row["relative to the loop"] for row in chosen], "o-", label=about)
    axes.axhline(1, color="grey", ls=":", label="plain PyTorch loop")
    axes.set_xscale("log", base=2)
    axes.set_xticks(callers, [str(count) for count in callers])
    axes.set(xlabel="concurrent callers", ylabel="answers/s, relative to the loop", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _draw_overhead(result: Result) -> Any:
    """Milliseconds before the first text, and processor time per token by process."""
    from matplotlib import pyplot

    figure, (first, spent) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    row = _rows(result, 0)[-1]
    kinds = ("text", "repeated video", "first video")
    first.barh(kinds, [row[kind] for kind in kinds])
    first.invert_yaxis()
    first.set(xlabel="ms before the first text, without the engines")
    table = result["tables"][2]
    rows = [row for row in table["rows"] if row[1] == "paced"]
    left = [0.0] * len(rows)
    labels = [f"{row[2]} callers" for row in rows]
    for place, process in enumerate(table["columns"][3:], 3):
        values = [row[place] for row in rows]
        spent.barh(labels, values, left=left, label=process)
        left = [before + value for before, value in zip(left, values, strict=True)]
    spent.invert_yaxis()
    spent.set(xlabel="processor µs per token (a step takes 5 ms)")
    spent.legend(fontsize=7)
    for axes in (first, spent):
        axes.grid(axis="x", alpha=0.3)
    return figure


def _draw_preparation(result: Result) -> Any:
    """Processor seconds from file to pixels, relative to the limit, for every clip."""
    from matplotlib import pyplot

    rows = _rows(result, 0)
    ways = ("ours", "plain loop", "decord")
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.42 * len(rows)), layout="constrained")
    for place, way in enumerate(ways):
        ratios = [_seconds(row[way]) / _seconds(row["limit"]) for row in rows]
        axes.barh([number + 0.27 * (place - 1) for number in range(len(rows))], ratios, 0.25, label=way)
    axes.axvline(1, color="grey", ls=":", label="limit: decode only what the frames need")
    axes.set_yticks(range(len(rows)), [row["clip"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set(xlabel="processor time, relative to the limit", xlim=(0.9, None))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _seconds(cell: str) -> float:
    """The median in a cell such as "= 0.140 (0.133 to 0.144), 26 MB"; NaN, which draws no bar, for one without."""
    number = re.search(r"\d+\.\d+", cell)
    return float(number[0]) if number else math.nan


PLOTS: dict[str, Callable[[Result], Any]] = {
    "callers": _draw_callers,
    "overhead": _draw_overhead,
    "preparation": _draw_preparation,
}
