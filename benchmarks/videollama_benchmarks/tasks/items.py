"""The parts of a benchmark: items, and tasks that load and score them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from videollama_core.protocol.errors import BadSample

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv")


@dataclass(frozen=True)
class Item:
    """One question, or a set of related ones, about one media file."""

    name: str  # unique in the benchmark
    kind: str  # video (a file or a folder of frames) | image | audio | video+audio
    media: Path
    questions: tuple[str, ...]  # as they are sent; most items have one
    truth: Any  # what the answer is compared with; None if the benchmark is scored externally
    options: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)  # column -> value, for the tables of the report
    start: float | None = None  # seconds
    end: float | None = None
    sound: Path | None = None  # audio file of a video+audio item whose video is silent


@dataclass(frozen=True)
class Verdict:
    """An item's score."""

    prediction: str
    right: bool | None = None  # None: unknown (scored externally, or only by `score`)
    score: float | None = None  # the judge's, 0 to 5
    extra: dict[str, Any] = field(default_factory=dict)
    right_in: dict[str, bool] = field(default_factory=dict)  # column -> right, for tables with a different rule


@dataclass(frozen=True)
class JudgeQuestion:
    """One request to the judge. An item's scores for the same aspect are averaged."""

    aspect: str
    values: dict[str, str]  # placeholder of the prompt -> text
    reading: Literal["pred", "binary_pred", "score", "first"] = "score"  # format of the reply: judge.read_reply


@dataclass(frozen=True)
class Task:
    """A benchmark. Exactly one of `read` and `judge` is set."""

    name: str
    title: str
    load: Callable[..., list[Item]]  # arguments: folder, and the checkpoint's number of frames if counts_frames
    read: Callable[[Item, Sequence[str]], Verdict] | None = None
    judge: Callable[[Item, Sequence[str]], list[JudgeQuestion]] | None = None
    export: Callable[[list[tuple[Item, Verdict]], Path], Path] | None = None  # writes a file for external scoring
    max_new_tokens: int = 2048  # the reference's default, which none of its evaluations changes
    counts_frames: bool = False
    measure: Callable[[Sequence[tuple[Item, Verdict]]], dict[str, float]] | None = None  # additional metrics of a row


def read_text_file(path: Path) -> str:
    """Raises: BadSample if the file is missing or not UTF-8 text."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSample(f"{path} cannot be read: {error}") from error


def read_json_file(path: Path) -> Any:
    """Raises: BadSample if the file is missing or not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadSample(f"{path} is missing: give the folder of the benchmark as published") from None
    except (OSError, ValueError) as error:
        raise BadSample(f"{path} cannot be read as JSON: {error}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Raises: BadSample with the number of the line that is not JSON."""
    entries = []
    for number, line in enumerate(read_text_file(path).splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise BadSample(f"{path}, line {number} cannot be read as JSON: {error}") from error
    return entries


def find_video(folder: Path, *stems: str) -> Path:
    """The first existing video with one of the names, in any container; if there is none, the expected path of an mp4."""
    for suffix in (*VIDEO_SUFFIXES, ""):
        for stem in stems:
            if (folder / (stem + suffix)).is_file():
                return folder / (stem + suffix)
    return folder / (stems[0] + ".mp4")


def find_named(folder: Path, name: str, *below: str) -> Path:
    """The file that an annotation names: the path itself, below `folder`, or its last part in a subfolder of `below`."""
    candidates = [Path(name), folder / name, *(folder / subfolder / Path(name).name for subfolder in below)]
    existing = next((path for path in candidates if path.is_file()), None)
    return existing or folder / name.lstrip("/")


def need(entry: Any, key: str, path: Path) -> Any:
    """The value of a required key. Raises: BadSample if `entry`, read from `path`, lacks it."""
    if not isinstance(entry, dict) or key not in entry:
        content = (
            f"has the keys {', '.join(map(str, entry))}" if isinstance(entry, dict) else f"is a {type(entry).__name__}"
        )
        raise BadSample(f"{path}: an entry {content}; {key!r} was expected")
    return entry[key]


def read_turns(entry: Any, path: Path) -> tuple[str, str]:
    """Question and answer of an entry in the format of training data. Raises: BadSample."""
    turns = need(entry, "conversations", path)
    if not isinstance(turns, list) or len(turns) < 2:
        raise BadSample(f"{path}: conversations are {turns!r}; a question and an answer were expected")
    return need(turns[0], "value", path), need(turns[1], "value", path)


def load_annotated(folder: Path, path: Path, *below: str) -> list[Item]:
    """Load questions about videos with audio from a file in the format of training data; see `find_named` for `below`."""
    items = []
    for place, entry in enumerate(read_json_file(path)):
        question, answer = read_turns(entry, path)
        # The service inserts the placeholder of the video itself.
        question = question.replace("<video>", "").strip()
        video = find_named(folder, need(entry, "video", path), *below)
        items.append(Item(f"{place}", "video+audio", video, (question,), answer))
    return items
