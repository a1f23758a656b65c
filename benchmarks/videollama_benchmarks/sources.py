"""Sources of answers: a running server, or a checkpoint in this process. Both take an item and one question."""

import io
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from videollama_benchmarks.tasks.items import Item
from videollama_client import Client
from videollama_client.media import read_media
from videollama_core.protocol.errors import UnreadableMedia
from videollama_core.protocol.messages import SamplingOptions

Answerer = Callable[[Item, str], str]


def service(
    client: Client, max_new_tokens: int, timeout: float, frames: "FrameOrder | None", **sampling: Any
) -> Answerer:
    """Answers of a server over gRPC; `sampling` as in `Client.ask`, `timeout` in seconds."""

    def answer(item: Item, question: str) -> str:
        media = _media(item, frames)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "timeout": timeout, **sampling}
        return client.ask(question, start=item.start, end=item.end, **media, **options).text

    return answer


def in_process(
    folder: Path, tower: Path | None, max_new_tokens: int, frames: "FrameOrder | None", **sampling: Any
) -> Answerer:
    """Answers of the PyTorch pipeline, one at a time."""
    from videollama_core.media.video import Segment
    from videollama_core.pipeline import Pipeline

    pipeline = Pipeline(folder, tower)

    def answer(item: Item, question: str) -> str:
        media = read_media(**_media(item, frames))
        assert media is not None
        conversation = [{"role": "user", "content": question}]
        options = SamplingOptions(max_new_tokens=max_new_tokens, **sampling)
        return pipeline.answer(conversation, media.kind, media.files, Segment(item.start, item.end), options).text

    return answer


def _media(item: Item, frames: "FrameOrder | None") -> dict[str, Any]:
    if not item.media.exists():
        raise UnreadableMedia(f"{item.media} is missing")
    if item.kind == "video+audio":
        video = item.media if item.sound is None else join_sound(item.media, item.sound)
        return {"video": video, "with_audio": True}
    if frames is not None and item.kind == "video":
        return {"video": frames(item)}
    return {item.kind: item.media}


def join_sound(video: Path, sound: Path) -> bytes:
    """Remux the video of one file and the audio of another, without transcoding. Raises: UnreadableMedia."""
    import av

    buffer = io.BytesIO()
    try:
        with (
            av.open(str(video)) as video_file,
            av.open(str(sound)) as audio_file,
            av.open(buffer, "w", format="mov") as output,
        ):
            streams = [video_file.streams.video[0], audio_file.streams.audio[0]]
            copies = [output.add_stream_from_template(stream) for stream in streams]
            for source, stream, copy in zip((video_file, audio_file), streams, copies, strict=True):
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.stream = copy
                        output.mux(packet)
    except (OSError, ValueError, IndexError, av.FFmpegError) as error:
        raise UnreadableMedia(f"{video} and the audio {sound} cannot be joined into one file: {error}") from error
    return buffer.getvalue()


class FrameOrder:
    """A model's frames in another order, to measure how much answers depend on time.

    Args:
        order: shuffled (seeded by the item's name) or reversed.
        num_frames: the checkpoint's number of frames.
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
