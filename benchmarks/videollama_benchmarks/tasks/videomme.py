"""The benchmark VideoMME, without and with subtitles."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from videollama_benchmarks.tasks.answers import FALLBACK, find_letter, find_option, letter_of
from videollama_benchmarks.tasks.choices import LETTER_INSTRUCTION
from videollama_benchmarks.tasks.items import Item, Task, Verdict, find_video, need, read_text_file
from videollama_core.protocol.errors import BadSample

_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def load_videomme(folder: Path) -> list[Item]:
    """Load FOLDER/*.parquet or FOLDER/videomme/*.parquet, and FOLDER/videos/<YouTube id>.mp4."""
    return [_item(row, path, folder, "") for row, path in _rows(folder)]


def load_videomme_subtitles(folder: Path, num_frames: int) -> list[Item]:
    """Load the same, with FOLDER/subtitles/<YouTube id>.srt."""
    subtitles = cache(lambda name: "\n".join(_subtitles(folder, name, num_frames)))
    return [
        _item(row, path, folder, f"This video's subtitles are listed below:\n{subtitles(_youtube_id(row, path))}\n")
        for row, path in _rows(folder)
    ]


def _rows(folder: Path) -> list[tuple[dict[str, Any], Path]]:
    paths = sorted([*folder.glob("*.parquet"), *folder.glob("videomme/*.parquet")])
    if not paths:
        raise BadSample(f"{folder} has no parquet file of VideoMME (test-00000-of-00001.parquet)")
    return [(row, path) for path in paths for row in read_videomme_file(path)]


def read_videomme_file(path: Path) -> list[dict[str, Any]]:
    """Read the published parquet file, which has one row per question. Raises: BadSample."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise BadSample(
            "reading VideoMME's parquet files needs pyarrow; pip install 'videollama2-service[eval]'"
        ) from error
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise BadSample(f"{path} cannot be read as parquet: {error}") from error


def _youtube_id(row: dict[str, Any], path: Path) -> str:
    return need(row, "url", path).split("watch?v=")[-1]


def _item(row: dict[str, Any], path: Path, folder: Path, before: str) -> Item:
    options = need(row, "options", path)
    question = (
        f"{before}Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        f"{need(row, 'question', path)}\n" + "".join(f"{option}\n" for option in options) + f"{LETTER_INSTRUCTION} "
        "The best answer is: "
    )
    return Item(
        name=need(row, "question_id", path),
        kind="video",
        media=find_video(folder / "videos", _youtube_id(row, path)),
        questions=(question,),
        truth=need(row, "answer", path),
        options=tuple(_words(option, path) for option in options),
        groups={key: str(row.get(key)) for key in ("domain", "sub_category", "task_type", "duration")},
    )


def _words(option: str, path: Path) -> str:
    """The text between the letter and the last character, which the reference assumes to be a full stop."""
    match = re.search(r"[A-D]\. (.*).", option)
    if match is None:
        raise BadSample(
            f"{path}: an option is {option!r}; a letter, a full stop and words were expected, as in 'A. Blue.'"
        )
    return match[1]


def read_videomme(item: Item, answers: Sequence[str]) -> Verdict:
    """Take the letter; without any letter, the first option in the text, or else the third."""
    letter = find_letter(answers[0], "ABCD")
    if letter is None:
        index = find_option(answers[0], [_spellings(option) for option in item.options])
        letter = letter_of(FALLBACK if index is None else index)
    return Verdict(letter, letter == item.truth)


def _spellings(option: str) -> tuple[str, ...]:
    return (option, _DIGIT_WORDS[int(option)]) if re.fullmatch("[0-9]", option) else (option,)


def _subtitles(folder: Path, name: str, num_frames: int) -> list[str]:
    """Empty without an srt file, and for a video that cannot be opened: the request about it will fail by itself."""
    path = folder / "subtitles" / f"{name}.srt"
    length = video_length(find_video(folder / "videos", name))
    return shown_subtitles(path, *length, num_frames) if path.is_file() and length else []


def video_length(path: Path) -> tuple[int, float] | None:
    """(number of frames, frames per second) by the rules of OpenCV, which the reference uses. None if unreadable."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 1 / (stream.time_base or 1))
            seconds = (container.duration or 0) / av.time_base
            return stream.frames or int(np.floor(seconds * rate + 0.5)), rate
    except (OSError, IndexError, av.FFmpegError):
        return None


def subtitle_frames(num_available: int, num_frames: int) -> list[int]:
    """Frames whose timestamps select the subtitles. Unlike for the model's own frames, boundaries are rounded first."""
    edge = float(num_available - 1) / num_frames
    bounds = [int(np.round(edge * index)) for index in range(num_frames + 1)]
    return [(low + high) // 2 for low, high in pairwise(bounds)]


def shown_subtitles(srt: Path, num_available: int, rate: float, num_frames: int) -> list[str]:
    """The first cue on screen at each sampled moment, so that a long one repeats; tags as pysubs2 writes them."""
    try:
        import pysubs2
    except ImportError as error:
        raise BadSample("reading subtitles needs pysubs2; pip install 'videollama2-service[eval]'") from error
    try:
        cues = pysubs2.SSAFile.from_string(read_text_file(srt))
    except (pysubs2.Pysubs2Error, ValueError) as error:
        raise BadSample(f"{srt} cannot be read as subtitles: {error}") from error
    texts = []
    for index in subtitle_frames(num_available, num_frames):
        moment = round(index * (1000 / rate))  # milliseconds
        text = next((cue.text for cue in cues if cue.start < moment < cue.end), "").replace("\\N", " ")
        if text.strip():
            texts.append(text)
    return texts


TASKS = [
    Task("videomme", "VideoMME without subtitles", load_videomme, read_videomme),
    Task("videomme-subtitles", "VideoMME with subtitles", load_videomme_subtitles, read_videomme, counts_frames=True),
]
