"""Writes the recorded results into docs/performance.md: `python -m videollama_benchmarks.performance_page`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videollama_benchmarks.recording import RESULTS, TREE

PAGE = TREE / "docs/performance.md"
BEGIN, END = "<!-- recorded results -->", "<!-- end of the recorded results -->"  # the text in between is generated


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
        rows = [
            [aim["what"], aim["measured"], f"{'>=' if aim['at_least'] else '<='} {_cell(aim['wanted'])}", _verdict(aim)]
            for aim in result["aims"]
        ]
        lines += _table(("target", "measured", "required", "met"), rows)
    return [*lines, _origin(result), ""]


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


def render(folder: Path = RESULTS) -> str:
    """All results of a folder as Markdown, sorted by name."""
    results = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    return "\n".join(line for result in results for line in result_lines(result))


def put_into(page: str, generated: str) -> str:
    """The page with `generated` between its markers. Raises: ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{BEGIN} and {END} are not in the page")
    return f"{before}{BEGIN}\n\n{generated}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(put_into(PAGE.read_text("utf-8"), render()), "utf-8")
    print(PAGE)
