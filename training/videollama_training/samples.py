"""The reference's training data: a JSON list of samples, read, checked and turned into token ids.

A sample is {id, image | video | audio: path, conversations: [{from: human | gpt, value}]}, with at most one media. The
placeholder of the media moves to the front of every message that holds it and is followed by a newline. A video whose sound
track is heard too says `with_audio: true`: the published data keeps such samples in a file of their own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_core.prompt import MODALITIES, PLACEHOLDERS
from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_core.text import Tokenizer

MEDIA_KINDS = ("video", "image", "audio")
ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Sample:
    """One conversation about one media, or about none."""

    name: str  # the sample's id, or its place in the file
    kind: str  # video, image, audio, video_with_audio, or text
    media: Path | None
    turns: tuple[tuple[str, str], ...]  # (question, answer) pairs without placeholders

    @property
    def placeholder(self) -> str:
        return PLACEHOLDERS[MODALITIES.get(self.kind, self.kind)]


@dataclass(frozen=True)
class Tokens:
    """A conversation as ids, before and after the media."""

    before: list[int]
    after: list[int]
    is_target: list[bool]  # for each of `after`: whether it is predicted


def read_samples(path: Path, folder: Path) -> Iterator[Sample | BadSample]:
    """Samples of a JSON file, those with a fault as the error that names it.

    Args:
        folder: what the samples' media paths are relative to.
    Raises: BadSample if the file as a whole is no such list.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadSample(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, list) or not content:
        raise BadSample(f"{path} holds {type(content).__name__}; a list of samples was wanted")
    for place, entry in enumerate(content):
        try:
            yield read_sample(entry, place, folder)
        except BadSample as error:
            yield error


def read_sample(entry: Any, place: int, folder: Path) -> Sample:
    """Raises: BadSample, which names the sample, what was found and what was wanted."""
    name = str(entry.get("id", f"#{place}")) if isinstance(entry, dict) else f"#{place}"

    def bad(reason: str) -> BadSample:
        return BadSample(f"sample {name}: {reason}")

    if not isinstance(entry, dict):
        raise bad(f"found {type(entry).__name__}; an object with id, conversations and one media was wanted")
    kinds = [kind for kind in MEDIA_KINDS if kind in entry]
    if len(kinds) > 1:
        raise bad(f"found {' and '.join(kinds)}; one sample is about one media")
    messages = entry.get("conversations")
    if not isinstance(messages, list) or not messages:
        raise bad("its conversation is empty; wanted pairs of messages from human and gpt")
    if len(messages) % 2:
        raise bad(f"found {len(messages)} messages; a question and an answer belong to each pair")
    values = []
    for number, message in enumerate(messages):
        wanted = ("human", "gpt")[number % 2]
        if not isinstance(message, dict) or message.get("from") != wanted or not isinstance(message.get("value"), str):
            found = message.get("from") if isinstance(message, dict) else type(message).__name__
            raise bad(f"message {number} is from {found!r}; wanted {wanted!r} with a string as value")
        values.append(_without_placeholders(message["value"]))
        if wanted == "gpt" and not values[-1]:
            raise bad(f"message {number} is an empty answer")
    if not kinds:
        return Sample(name, "text", None, tuple(zip(values[::2], values[1::2], strict=True)))
    media = entry[kinds[0]]
    if not isinstance(media, str) or not media:
        raise bad(f"{kinds[0]} is {media!r}; wanted the path of a file below {folder}")
    if not (folder / media).exists():
        raise bad(f"{folder / media} is missing")
    kind = kinds[0]
    if entry.get("with_audio"):
        if kind != "video":
            raise bad(f"with_audio is said of {kind}; only a video has frames and sound")
        kind = "video_with_audio"
    return Sample(name, kind, folder / media, tuple(zip(values[::2], values[1::2], strict=True)))


def _without_placeholders(text: str) -> str:
    for placeholder in filter(None, PLACEHOLDERS.values()):
        text = text.replace(f"{placeholder}\n", "").replace(f"\n{placeholder}", "").replace(placeholder, "")
    return text.strip()


def tokenize(sample: Sample, tokenizer: Tokenizer, plain: bool) -> Tokens:
    """Ids of a conversation, and which of them are the assistant's.

    Args:
        plain: pretraining's format, placeholder and caption without a template; the whole caption is predicted.
    Raises: BadSample if the chat template refuses the conversation.
    """
    placeholder = sample.placeholder
    if plain:
        caption = tokenizer.encode(sample.turns[0][1] + "\n")
        return Tokens([], caption, [True] * len(caption))
    messages: list[dict[str, str]] = []
    ids: list[int] = []
    is_target: list[bool] = []
    before: list[int] = []
    for number, (question, answer) in enumerate(sample.turns):
        text = f"{placeholder}\n{question}" if number == 0 else question
        messages.append({"role": "user", "content": text})
        try:
            asked = tokenizer.render(messages)
            messages.append({"role": "assistant", "content": answer})
            answered = tokenizer.render(messages, add_generation_prompt=False)
        except InvalidRequest as error:
            raise BadSample(f"sample {sample.name}: {error}") from error
        prompt, whole = _split(asked, placeholder, tokenizer), _split(answered, placeholder, tokenizer)
        if whole[0] != prompt[0] or whole[1][: len(prompt[1])] != prompt[1] or prompt[1][: len(ids)] != ids:
            raise BadSample(f"sample {sample.name}: the chat template does not begin the answer where the prompt ends")
        before = whole[0]
        is_target += [False] * (len(prompt[1]) - len(ids)) + [True] * (len(whole[1]) - len(prompt[1]))
        ids = whole[1]
    return Tokens(before, ids, is_target)


def _split(text: str, placeholder: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids before and after the placeholder; without one, all are after it."""
    before, _, after = text.rpartition(placeholder) if placeholder else ("", "", text)
    return tokenizer.encode(before) if before else [], tokenizer.encode(after)
