"""Writes the recorded results and their plots into docs/performance.md: `python -m videollama_benchmarks.performance_page`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videollama_benchmarks.performance_plots import draw_all
from videollama_benchmarks.recording import RESULTS, TREE

PAGE = TREE / "docs/performance.md"
SUMMARY, RECORDED = "the summary", "the recorded results"  # parts of the page that are generated


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """One result as Markdown."""
    lines = [f"### {result['title']}", ""]
    for note in result["notes"]:
        lines += [note, ""]
    for table in result["tables"]:
        if table["title"]:
            lines += [f"{table['title']}:", ""]
        lines += _table(table["columns"], table["rows"])
    if result["aims"]:
        lines += _table(("target", "measured", "required", "met"), _aims(result))
    return [*lines, _origin(result), ""]


def _aims(result: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [aim["what"], aim["measured"], f"{'>=' if aim['at_least'] else '<='} {_cell(aim['wanted'])}", _verdict(aim)]
        for aim in result["aims"]
    ]


def _verdict(aim: Mapping[str, Any]) -> str:
    return "yes" if aim["holds"] else "**no**"


def _origin(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    hardware = ", ".join(filter(None, (machine["processor"], f"{machine['cores']} cores", machine["gpu"])))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    origin = f"`{result['command']}`, {machine['date'][:10]}, commit {machine['commit']}"
    return f"{origin}; {hardware}; Python {machine['python']}, {versions}."


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in lines] + [""]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def _results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def render(folder: Path = RESULTS) -> str:
    """All results of a folder as Markdown, sorted by name."""
    return "\n".join(line for result in _results(folder) for line in result_lines(result))


def render_summary(folder: Path = RESULTS) -> str:
    """The targets of all results as one table."""
    columns = ("measurement", "target", "measured", "required", "met")
    rows = [
        [f"[{result['title']}](#{_anchor(result['title'])})" if place == 0 else "", *row]
        for result in _results(folder)
        for place, row in enumerate(_aims(result))
    ]
    return "\n".join(_table(columns, rows))


def _anchor(title: str) -> str:
    """A heading's anchor on the site."""
    return "-".join("".join(letter for letter in title.lower() if letter.isalnum() or letter in " -").split())


def put_into(page: str, name: str, generated: str) -> str:
    """The page with `generated` between the markers of a part. Raises: ValueError if the page has none."""
    opening, closing = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, begin, rest = page.partition(opening)
    _, end, after = rest.partition(closing)
    if not (begin and end):
        raise ValueError(f"{opening} and {closing} are not in the page")
    return f"{before}{opening}\n\n{generated}\n{closing}{after}"


def updated(page: str) -> str:
    """The page with every generated part made of the recorded results."""
    return put_into(put_into(page, SUMMARY, render_summary()), RECORDED, render())


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
    for path in (PAGE, *draw_all()):
        print(path)
