"""Who answers: a running server, or the checkpoint in this process. Both take an item and one question."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from videollama_benchmarks.items import Item
from videollama_client import Client
from videollama_client.media import read_media
from videollama_core.protocol.errors import UnreadableMedia
from videollama_core.protocol.messages import SamplingOptions

ORDERS = ("true", "shuffled", "reversed")
Answerer = Callable[[Item, str], str]


def service(client: Client, max_new_tokens: int, timeout: float, frames: "FrameOrder | None") -> Answerer:
    """Answers over gRPC."""

    def answer(item: Item, question: str) -> str:
        media = _media(item, frames)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "timeout": timeout}
        return client.ask(question, start=item.start, end=item.end, **media, **options).text

    return answer


def in_process(folder: Path, tower: Path | None, max_new_tokens: int, frames: "FrameOrder | None") -> Answerer:
    """Answers of the plain pipeline, one at a time."""
    from videollama_core.media.video import Segment
    from videollama_core.pipeline import Pipeline

    pipeline = Pipeline(folder, tower)

    def answer(item: Item, question: str) -> str:
        sent = _media(item, frames)
        media = read_media(**sent)
        assert media is not None
        conversation = [{"role": "user", "content": question}]
        options = SamplingOptions(max_new_tokens=max_new_tokens)
        return pipeline.answer(conversation, media.kind, media.files, Segment(item.start, item.end), options).text

    return answer


def _media(item: Item, frames: "FrameOrder | None") -> dict[str, Any]:
    if not item.media.exists():
        raise UnreadableMedia(f"{item.media} is missing")
    if item.kind == "video+audio":
        return {"video": item.media, "with_audio": True}
    if frames is not None and item.kind == "video":
        return {"video": frames(item)}
    return {item.kind: item.media}


class FrameOrder:
    """The frames that a model would look at, in another order: what an answer owes to time.

    Args:
        order: shuffled (seeded by the item's name) or reversed.
        num_frames: what the checkpoint looks at.
    """

    def __init__(self, order: str, num_frames: int) -> None:
        self.order, self.num_frames = order, num_frames

    def __call__(self, item: Item) -> np.ndarray:
        """uint8 [T, H, W, 3]."""
        from videollama_core.media.video import Segment, load_media

        chosen = load_media("video", [item.media.read_bytes()], Segment(item.start, item.end), self.num_frames)
        frames = list(chosen.rgb)
        if self.order == "reversed":
            frames.reverse()
        else:
            Random(item.name).shuffle(frames)
        return np.stack(frames)
