"""Reads and checks training data in the reference's format, a JSON list of samples.

A sample is {id, image | video | audio: path, conversations: [{from: human | gpt, value}]}, with at most one media file and one
placeholder for it. A video that is used with its audio track has `with_audio: true`; published data keeps such samples in a
separate file. Faults that the reference would silently lose or mix up are refused here; docs/training.md lists them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_core.prompt import MODALITIES, PLACEHOLDERS
from videollama_core.protocol.contract import IMAGE_SUFFIXES
from videollama_core.protocol.errors import BadSample

MEDIA_KEYS = ("video", "image", "audio")


@dataclass(frozen=True)
class Sample:
    """One conversation about one media file, or without media."""

    name: str  # the sample's id, or its index in the file
    kind: str  # video, image, audio, video_with_audio, or text
    media: Path | None
    placeholder: str  # marks the media's place in `turns`, once; empty for text
    turns: tuple[tuple[str, str], ...]  # questions and answers

    @property
    def media_turn(self) -> int:
        """Index of the turn whose question has the placeholder; 0 for text."""
        return next(number for number, (question, _) in enumerate(self.turns) if self.placeholder in question)


def read_samples(path: Path, folder: Path) -> Iterator[Sample | BadSample]:
    """Read the samples of a JSON file; for a faulty one, the error is yielded.

    Args:
        folder: base of the samples' media paths.
    Raises: BadSample if the file is not such a list.
    """
    for place, entry in enumerate(read_list(path)):
        try:
            yield read_sample(entry, place, folder)
        except BadSample as error:
            yield error


def read_list(path: Path) -> list[Any]:
    """Raises: BadSample if the file is not a JSON list, or is empty."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadSample(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, list) or not content:
        kind = "an empty list" if content == [] else type(content).__name__
        raise BadSample(f"{path} holds {kind}; expected a list of samples")
    return content


def read_sample(entry: Any, place: int, folder: Path) -> Sample:
    """Raises: BadSample with the sample's name and its fault."""
    name = str(entry.get("id", f"#{place}")) if isinstance(entry, dict) else f"#{place}"
    try:
        if not isinstance(entry, dict):
            raise BadSample(
                f"it is {type(entry).__name__}; expected an object with id, conversations and one media file"
            )
        messages = _messages(entry.get("conversations"))
        kind, media = _media(entry, folder)
        placeholder = PLACEHOLDERS[MODALITIES.get(kind, kind)]
        if "video" in entry and kind == "image" and not any(placeholder in text for text in messages.values()):
            placeholder = PLACEHOLDERS["video"]  # for an image under the key "video" either placeholder is accepted
        texts = _arranged(messages, placeholder) if placeholder else list(messages.values())
    except BadSample as error:
        raise BadSample(f"sample {name}: {error}") from error
    return Sample(name, kind, media, placeholder, tuple(zip(texts[::2], texts[1::2], strict=True)))


def _messages(entries: Any) -> dict[int, str]:
    """Index in the file -> text of alternating questions and answers; a leading gpt message is skipped, as in the reference."""
    if not isinstance(entries, list) or not entries:
        raise BadSample("its conversation is empty; expected pairs of messages from human and gpt")
    first = 1 if isinstance(entries[0], dict) and entries[0].get("from") == "gpt" else 0
    count = len(entries) - first
    if count % 2 or not count:
        raise BadSample(
            f"it has {count} messages from the first question on; expected pairs of a question and an answer"
        )
    texts: dict[int, str] = {}
    for number, message in enumerate(entries[first:], start=first):
        role = ("human", "gpt")[(number - first) % 2]
        if not isinstance(message, dict) or message.get("from") != role or not isinstance(message.get("value"), str):
            speaker = message.get("from") if isinstance(message, dict) else type(message).__name__
            raise BadSample(f"message {number} is from {speaker!r}; expected {role!r} with a string as value")
        texts[number] = message["value"]
        if role == "gpt" and not texts[number].strip():
            raise BadSample(f"message {number} is an empty answer")
    return texts


def _media(entry: dict[str, Any], folder: Path) -> tuple[str, Path | None]:
    """Kind and file of a sample's media."""
    keys = [key for key in MEDIA_KEYS if key in entry]
    if len(keys) > 1:
        raise BadSample(f"it has {' and '.join(keys)}; a sample may have only one media file")
    if not keys:
        return "text", None
    kind, name = keys[0], entry[keys[0]]
    if not isinstance(name, str) or not name:
        raise BadSample(f"{kind} is {name!r}; expected the path of a file below {folder}")
    if not (folder / name).exists():
        raise BadSample(f"{folder / name} is missing")
    kind = kind_of(kind, name)
    if entry.get("with_audio"):
        if kind != "video":
            raise BadSample(f"with_audio is set for {kind}; only a video may have it")
        kind = "video_with_audio"
    return kind, folder / name


def kind_of(key: str, name: str) -> str:
    """Kind of the file under a sample's key: an image file under `video`, as in the reference's own example, is an image."""
    return "image" if key == "video" and Path(name).suffix.lower() in IMAGE_SUFFIXES else key


def _arranged(messages: dict[int, str], placeholder: str) -> list[str]:
    """The texts, with the placeholder's message arranged as in the reference: placeholder, newline, remaining text.

    Only that message is stripped, and only this media's placeholder is special: other text is unchanged.
    """
    texts: dict[int, str] = {}
    holders: list[int] = []
    for number, text in messages.items():
        if placeholder in text:
            text = f"{placeholder}\n{text.replace(placeholder, '').strip()}".strip()
        texts[number] = text
        holders += [number] * text.count(placeholder)
    if len(holders) > 1:
        where = " and ".join(map(str, holders))
        raise BadSample(f"messages {where} have {placeholder}; expected exactly one, as there is one media file")
    if not holders:
        raise BadSample(
            f"no question has {placeholder}; put it where the media belongs, usually before the first question"
        )
    if list(messages).index(holders[0]) % 2:
        raise BadSample(f"message {holders[0]} is an answer and has {placeholder}; the media belongs to a question")
    return list(texts.values())
