"""What a benchmark is made of: items, and tasks that load them, read the answers and add them up."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from videollama_core.protocol.errors import BadSample

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv")


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
    right_in: dict[str, bool] = field(default_factory=dict)  # column -> right, where its table has a rule of its own


@dataclass(frozen=True)
class JudgeQuestion:
    """One call of the judge. An item's calls of one aspect are averaged."""

    aspect: str
    values: dict[str, str]  # what the placeholders of its prompt stand for
    reading: Literal["pred", "binary_pred", "score", "first"] = "score"  # how its reply is read: judge.read_reply


@dataclass(frozen=True)
class Task:
    """A benchmark. Exactly one of `read` and `judge` is there."""

    name: str
    title: str
    load: Callable[..., list[Item]]  # of the folder, and of the checkpoint's number of frames if counts_frames
    read: Callable[[Item, Sequence[str]], Verdict] | None = None
    judge: Callable[[Item, Sequence[str]], list[JudgeQuestion]] | None = None
    export: Callable[[list[tuple[Item, Verdict]], Path], Path] | None = None  # a file for scoring elsewhere
    max_new_tokens: int = 2048  # the reference's default, which none of its evaluations changes
    counts_frames: bool = False
    measure: Callable[[Sequence[tuple[Item, Verdict]]], dict[str, float]] | None = (
        None  # more numbers of each table row
    )


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


def read_json_lines(path: Path) -> list[Any]:
    """Raises: BadSample, which names the line."""
    entries = []
    for number, line in enumerate(read_text_file(path).splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise BadSample(f"{path}, line {number} cannot be read as JSON: {error}") from error
    return entries


def find_video(folder: Path, *stems: str) -> Path:
    """The first video of one of the names, whatever its container; the mp4 that was expected where there is none."""
    for suffix in (*VIDEO_SUFFIXES, ""):
        for stem in stems:
            if (folder / (stem + suffix)).is_file():
                return folder / (stem + suffix)
    return folder / (stems[0] + ".mp4")


def find_named(folder: Path, named: str, *below: str) -> Path:
    """The file that an annotation names: as it stands, below the folder, or by its last part in one of `below`."""
    places = [Path(named), folder / named, *(folder / one / Path(named).name for one in below)]
    found = next((place for place in places if place.is_file()), None)
    return found or folder / named.lstrip("/")


def need(entry: Any, key: str, path: Path) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        found = f"the keys {', '.join(map(str, entry))}" if isinstance(entry, dict) else type(entry).__name__
        raise BadSample(f"{path}: an entry holds {found}; {key!r} was wanted")
    return entry[key]


def read_turns(entry: Any, path: Path) -> tuple[str, str]:
    """Question and answer of an entry in the format of training data."""
    turns = need(entry, "conversations", path)
    if not isinstance(turns, list) or len(turns) < 2:
        raise BadSample(f"{path}: conversations hold {turns!r}; a question and an answer were wanted")
    return need(turns[0], "value", path), need(turns[1], "value", path)


def load_annotated(folder: Path, path: Path, *below: str) -> list[Item]:
    """Questions about videos with their audio, in the format of training data; see `find_named` for `below`."""
    items = []
    for place, entry in enumerate(read_json_file(path)):
        question, answer = read_turns(entry, path)
        # The placeholder of the video is put into the prompt by the service.
        question = question.replace("<video>", "").strip()
        video = find_named(folder, need(entry, "video", path), *below)
        items.append(Item(f"{place}", "video+audio", video, (question,), answer))
    return items
