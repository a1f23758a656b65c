"""Reports results as a table, a JSON file and a plot."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

from videollama_benchmarks.run import Outcome
from videollama_benchmarks.tasks.items import Item, Verdict

matplotlib.use("Agg")
Measure = Callable[[Sequence[tuple[Item, Verdict]]], dict[str, float]]
_COMMON = ("items", "accuracy", "score")


def summarise(results: Sequence[tuple[Item, Verdict]], measure: Measure | None = None) -> dict[str, Any]:
    """Overall and by group: number of items, accuracy in percent (for answers that are right or wrong), mean score of the judge
    (0 to 5), and the task's own metrics.

    Returns: column -> value -> metric -> number; the overall row is under "overall", "all".
    """
    tables: dict[str, dict[str, list[tuple[Item, Verdict]]]] = defaultdict(lambda: defaultdict(list))
    for item, verdict in results:
        tables["overall"]["all"].append((item, verdict))
        for column, value in item.groups.items():
            right = verdict.right_in.get(column, verdict.right)
            tables[column][value].append((item, replace(verdict, right=right)))
    return {
        column: {
            value: _numbers([verdict for _, verdict in group]) | (measure(group) if measure else {})
            for value, group in sorted(rows.items())
        }
        for column, rows in tables.items()
    }


def _numbers(verdicts: list[Verdict]) -> dict[str, float]:
    numbers: dict[str, float] = {"items": len(verdicts)}
    decided = [verdict.right for verdict in verdicts if verdict.right is not None]
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    if decided:
        numbers["accuracy"] = round(100 * sum(decided) / len(decided), 2)
    if scores:
        numbers["score"] = round(sum(scores) / len(scores), 3)
    return numbers


def table(summary: dict[str, Any]) -> str:
    """The summary as lines of text."""
    lines = []
    for column, rows in summary.items():
        for value, numbers in rows.items():
            name = value if column == "overall" else f"{column}: {value}"
            accuracy = f"{numbers['accuracy']:7.2f} %" if "accuracy" in numbers else " " * 9
            score = f"  score {numbers['score']:.2f}" if "score" in numbers else ""
            more = "".join(f"  {key} {number:.2f}" for key, number in numbers.items() if key not in _COMMON)
            lines.append(f"{name:44}{accuracy}{score}{more}  ({numbers['items']:.0f})")
    return "\n".join(lines)


def write_report(
    folder: Path, about: dict[str, Any], outcome: Outcome, measure: Measure | None = None
) -> dict[str, Any]:
    """Write result.json and result.png to the folder. Returns: the summary."""
    summary = summarise(outcome.results, measure)
    content = {
        **about,
        "summary": summary,
        "failed": outcome.failed,
        "items": [
            {
                "name": item.name,
                "prediction": verdict.prediction,
                "truth": item.truth,
                "right": verdict.right,
                "score": verdict.score,
            }
            for item, verdict in outcome.results
        ],
    }
    (folder / "result.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
    draw(summary, f"{about['task']} ({about['order']} order of frames)", folder / "result.png")
    return summary


def draw(summary: dict[str, Any], title: str, path: Path) -> None:
    """Plot one bar per row of the tables: accuracy, or the judge's score."""
    from matplotlib import pyplot

    bars = [
        (value if column == "overall" else f"{value}", numbers, column)
        for column, rows in summary.items()
        for value, numbers in rows.items()
        if "accuracy" in numbers or "score" in numbers
    ]
    if not bars:
        return
    percent = any("accuracy" in numbers for _, numbers, _ in bars)
    columns = list(dict.fromkeys(column for _, _, column in bars))
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.28 * len(bars)), layout="constrained")
    for place, (_, numbers, column) in enumerate(bars):
        value = numbers.get("accuracy", 0.0) if percent else numbers["score"]
        axes.barh(place, value, color=f"C{columns.index(column) % 10}")
        axes.text(value, place, f" {value:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [f"{name} ({numbers['items']:.0f})" for name, numbers, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="right answers (%)" if percent else "judge's score (0 to 5)", title=title)
    axes.set_xlim(0, 108 if percent else 5.4)
    axes.grid(axis="x", alpha=0.3)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=f"C{place % 10}") for place in range(len(columns))]
    axes.legend(handles, columns, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
