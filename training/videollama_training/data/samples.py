"""The reference's training data: a JSON list of samples, read and checked.

A sample is {id, image | video | audio: path, conversations: [{from: human | gpt, value}]}, with at most one media and one
placeholder for it. A video whose audio track is used too says `with_audio: true`: the published data keeps such samples in a
file of their own. What the reference would lose or mix up in silence is refused here; docs/training.md lists it.
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
    """One conversation about one media, or about none."""

    name: str  # the sample's id, or its place in the file
    kind: str  # video, image, audio, video_with_audio, or text
    media: Path | None
    placeholder: str  # stands for the media in `turns`, once; empty for text
    turns: tuple[tuple[str, str], ...]  # question and answer

    @property
    def media_turn(self) -> int:
        """Whose question holds the placeholder; 0 for text."""
        return next(number for number, (question, _) in enumerate(self.turns) if self.placeholder in question)


def read_samples(path: Path, folder: Path) -> Iterator[Sample | BadSample]:
    """Samples of a JSON file, those with a fault as the error that names it.

    Args:
        folder: what the samples' media paths are relative to.
    Raises: BadSample if the file as a whole is no such list.
    """
    for place, entry in enumerate(read_list(path)):
        try:
            yield read_sample(entry, place, folder)
        except BadSample as error:
            yield error


def read_list(path: Path) -> list[Any]:
    """Raises: BadSample if the file is not a JSON list, or an empty one."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadSample(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, list) or not content:
        raise BadSample(f"{path} holds {type(content).__name__}; a list of samples was wanted")
    return content


def read_sample(entry: Any, place: int, folder: Path) -> Sample:
    """Raises: BadSample, which names the sample, what was found and what was wanted."""
    name = str(entry.get("id", f"#{place}")) if isinstance(entry, dict) else f"#{place}"
    try:
        if not isinstance(entry, dict):
            raise BadSample(f"found {type(entry).__name__}; an object with id, conversations and one media was wanted")
        messages = _messages(entry.get("conversations"))
        kind, media = _media(entry, folder)
        placeholder = PLACEHOLDERS[MODALITIES.get(kind, kind)]
        if "video" in entry and kind == "image" and not any(placeholder in text for text in messages.values()):
            placeholder = PLACEHOLDERS["video"]  # a picture under the key "video" may be called either
        texts = _arranged(messages, placeholder) if placeholder else list(messages.values())
    except BadSample as error:
        raise BadSample(f"sample {name}: {error}") from error
    return Sample(name, kind, media, placeholder, tuple(zip(texts[::2], texts[1::2], strict=True)))


def _messages(entries: Any) -> dict[int, str]:
    """Questions and answers in turn, by their number in the file; a leading gpt message is left out, as in the reference."""
    if not isinstance(entries, list) or not entries:
        raise BadSample("its conversation is empty; wanted pairs of messages from human and gpt")
    first = 1 if isinstance(entries[0], dict) and entries[0].get("from") == "gpt" else 0
    count = len(entries) - first
    if count % 2 or not count:
        raise BadSample(
            f"found {count} messages from the first question on; a question and an answer belong to each pair"
        )
    found: dict[int, str] = {}
    for number, message in enumerate(entries[first:], start=first):
        wanted = ("human", "gpt")[(number - first) % 2]
        if not isinstance(message, dict) or message.get("from") != wanted or not isinstance(message.get("value"), str):
            speaker = message.get("from") if isinstance(message, dict) else type(message).__name__
            raise BadSample(f"message {number} is from {speaker!r}; wanted {wanted!r} with a string as value")
        found[number] = message["value"]
        if wanted == "gpt" and not found[number].strip():
            raise BadSample(f"message {number} is an empty answer")
    return found


def _media(entry: dict[str, Any], folder: Path) -> tuple[str, Path | None]:
    """The media's kind and file."""
    keys = [key for key in MEDIA_KEYS if key in entry]
    if len(keys) > 1:
        raise BadSample(f"found {' and '.join(keys)}; one sample is about one media")
    if not keys:
        return "text", None
    kind, name = keys[0], entry[keys[0]]
    if not isinstance(name, str) or not name:
        raise BadSample(f"{kind} is {name!r}; wanted the path of a file below {folder}")
    if not (folder / name).exists():
        raise BadSample(f"{folder / name} is missing")
    kind = kind_of(kind, name)
    if entry.get("with_audio"):
        if kind != "video":
            raise BadSample(f"with_audio is said of {kind}; only a video has frames and sound")
        kind = "video_with_audio"
    return kind, folder / name


def kind_of(key: str, name: str) -> str:
    """What a file under a sample's key is: a picture under `video`, as in the reference's own example, is an image."""
    return "image" if key == "video" and Path(name).suffix.lower() in IMAGE_SUFFIXES else key


def _arranged(messages: dict[int, str], placeholder: str) -> list[str]:
    """The texts, the placeholder's message as the reference arranges it: placeholder, newline and what else it says.

    Only that message is stripped, and only this media's placeholder is one: other text stays as it is.
    """
    found: dict[int, str] = {}
    holders: list[int] = []
    for number, text in messages.items():
        if placeholder in text:
            text = f"{placeholder}\n{text.replace(placeholder, '').strip()}".strip()
        found[number] = text
        holders += [number] * text.count(placeholder)
    if len(holders) > 1:
        where = " and ".join(map(str, holders))
        raise BadSample(f"messages {where} hold {placeholder}; one is wanted, for there is one media")
    if not holders:
        raise BadSample(
            f"no question holds {placeholder}; wanted it where the media belongs, mostly before the first one"
        )
    if list(messages).index(holders[0]) % 2:
        raise BadSample(f"message {holders[0]} is an answer and holds {placeholder}; the media belongs to a question")
    return list(found.values())
