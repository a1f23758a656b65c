"""What a benchmark is made of: items, and tasks that load them, read the answers and add them up."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollama_core.protocol.errors import BadSample

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")


@dataclass(frozen=True)
class Item:
    """One thing to ask about one media."""

    name: str  # unique in the benchmark
    kind: str  # video (a file or a folder of frames) | image | audio | video+audio
    media: Path
    questions: tuple[str, ...]  # as they are sent; most items have one
    truth: Any  # what the answer is compared with; None where the benchmark is scored elsewhere
    options: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)  # column -> value: the tables of the report
    start: float | None = None  # seconds
    end: float | None = None
    sound: Path | None = None  # of a video+audio whose video is silent


@dataclass(frozen=True)
class Verdict:
    """What became of an item."""

    prediction: str
    right: bool | None = None  # None: not known here (scored elsewhere, or a score alone)
    score: float | None = None  # of a judge, 0 to 5
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeQuestion:
    """One call of the judge."""

    aspect: str
    instruction: str
    content: str
    with_verdict: bool  # whether it also says yes or no


@dataclass(frozen=True)
class Task:
    """A benchmark. Exactly one of `read` and `judge` is there."""

    name: str
    title: str
    load: Callable[[Path], list[Item]]
    read: Callable[[Item, Sequence[str]], Verdict] | None = None
    judge: Callable[[Item, Sequence[str]], list[JudgeQuestion]] | None = None
    export: Callable[[list[tuple[Item, Verdict]], Path], Path] | None = None  # a file for scoring elsewhere
    measure: Callable[[Sequence[tuple[Item, Verdict]]], dict[str, float]] | None = (
        None  # more numbers of each table row
    )
    max_new_tokens: int = 32


def read_text_file(path: Path) -> str:
    """Raises: BadSample if it is not there or not text."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSample(f"{path} cannot be read: {error}") from error


def read_json_file(path: Path) -> Any:
    """Raises: BadSample, which says what lies there and what was wanted."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadSample(f"{path} is missing: name the folder of the benchmark as it is published") from None
    except (OSError, ValueError) as error:
        raise BadSample(f"{path} cannot be read as JSON: {error}") from error


def find_video(folder: Path, stem: str) -> Path:
    """The video of that name, whatever its container; the mp4 that was expected where there is none."""
    for suffix in ("", *VIDEO_SUFFIXES):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    return folder / (stem + ".mp4")


def need(entry: Any, key: str, path: Path) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        found = f"the keys {', '.join(map(str, entry))}" if isinstance(entry, dict) else type(entry).__name__
        raise BadSample(f"{path}: an entry holds {found}; {key!r} was wanted")
    return entry[key]
