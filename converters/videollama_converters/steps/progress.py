"""Progress of a conversion: the interface that reports it, and the bar that shows it."""

import sys
import time
from typing import Protocol

import click


class Progress(Protocol):
    """Receives a conversion's progress: `start` a task, `advance` it `total` times, then `done`."""

    def start(self, task: str, total: int) -> None: ...
    def advance(self) -> None: ...
    def done(self, reused: bool) -> None: ...


class SilentProgress:
    def start(self, task: str, total: int) -> None:
        pass

    def advance(self) -> None:
        pass

    def done(self, reused: bool) -> None:
        pass


class ProgressBar:
    """Prints one line per step to stderr; on a terminal, an animated bar."""

    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()
        self._task, self._total, self._count = "", 0, 0

    def start(self, task: str, total: int) -> None:
        self._task, self._total, self._count, self._began = task, max(total, 1), 0, time.monotonic()
        self._draw("")

    def advance(self) -> None:
        self._count = min(self._count + 1, self._total)
        self._draw("")

    def done(self, reused: bool) -> None:
        seconds = time.monotonic() - self._began
        self._count = self._total
        self._draw("still valid" if reused else f"{seconds:.1f} s")
        if not self._moving:
            click.echo(f"{self._task:24} {'still valid' if reused else f'{seconds:.1f} s'}", err=True)
        else:
            click.echo("", err=True)

    def _draw(self, note: str) -> None:
        if self._moving:
            filled = 30 * self._count // self._total
            click.echo(
                f"\r{self._task:24} [{'#' * filled}{'.' * (30 - filled)}] {self._count}/{self._total} {note}",
                nl=False,
                err=True,
            )
