"""The table of docs/security.md: one row per case, written by the run that observed it."""

import fcntl
import re
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
_HEAD = "| Case | Answer | Within | Memory |\n|---|---|---|---|\n"
_SECONDS = (0.1, 1, 5, 10)
_MEGABYTES = (100, 1024)


def _below(value: float, limits: tuple[float, ...], unit: str) -> str:
    """The least limit that holds: a table of bare figures would change with every run."""
    return next((f"{limit:g} {unit}" for limit in limits if value < limit), f"above {limits[-1]:g} {unit}")


@dataclass
class CaseTable:
    """The cases of one area; `add` each, and they are written to its part of the page after the run."""

    area: str
    rows: list[str] = field(default_factory=list)

    def add(self, case: str, answer: str, seconds: float, megabytes: float | None = None) -> None:
        """
        Args:
            answer: the error's class and code, or "answered".
            megabytes: peak above the start, where it was measured.
        """
        memory = "" if megabytes is None else _below(megabytes, _MEGABYTES, "MB")
        cells = (case, answer, _below(seconds, _SECONDS, "s"), memory)
        self.rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")

    def write(self, page: Path = PAGE) -> None:
        """Put the rows between the area's two marks."""
        start, end = f"<!-- cases: {self.area} -->", f"<!-- end of cases: {self.area} -->"
        block = f"{start}\n{_HEAD}" + "\n".join(sorted(self.rows)) + f"\n{end}"
        with page.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may write its areas
            text = file.read()
            if start not in text:
                raise ValueError(f"{page} has no line {start!r}; add it and {end!r} where the table belongs")
            file.seek(0)
            file.write(re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL))
            file.truncate()
