"""Measurements of one server: first and repeated questions, images and videos, eight videos at once."""

import asyncio
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videollama_benchmarks.load.mix import as_new
from videollama_benchmarks.recording import spread
from videollama_client import AsyncClient, Client, QuestionOptions
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.protocol.errors import StageFailed

QUESTION = "What happens in the video?"
NEW_TOKENS = 8
WAVE = 8


def first_and_repeated(address: str, clip: bytes, rounds: int) -> dict[str, Any]:
    """Seconds until the first text and seconds of the encoder, for a new video, the same again and a new image, in turn."""
    kinds = ("first_video", "repeated_video", "picture")
    times: dict[str, dict[str, list[float]]] = {kind: {"first_text": [], "encoder": []} for kind in kinds}
    number = time.time_ns()
    with Client(address) as client:
        for place in range(rounds):
            video, picture = as_new(clip, number + place), _picture(number + place)
            options: list[QuestionOptions] = [{"video": video}, {"video": video}, {"image": picture}]
            for kind, media in zip(kinds, options, strict=True):
                media["max_new_tokens"] = NEW_TOKENS
                began = time.perf_counter()
                stream = client.stream(QUESTION, **media)
                pieces = iter(stream)
                next(pieces, None)  # an answer may have no text
                times[kind]["first_text"].append(time.perf_counter() - began)
                for _ in pieces:
                    pass
                times[kind]["encoder"].append(stream.answer.seconds["encoder"])
    return {kind: {name: spread(values) for name, values in both.items()} for kind, both in times.items()}


def wave(address: str, clip: bytes, callers: int = WAVE) -> dict[str, Any]:
    """Send equal questions about new media all at once, and measure the seconds until each is answered.

    Raises: StageFailed unless every answer equals that of a question sent alone.
    """
    number = time.time_ns()
    with Client(address) as client:
        expected = client.ask(QUESTION, video=as_new(clip, number), max_new_tokens=NEW_TOKENS).output_ids
    ended, answers = asyncio.run(_ask_at_once(address, [as_new(clip, number + 1 + n) for n in range(callers)]))
    if any(ids != expected for ids in answers):
        raise StageFailed("an answer of the wave differs from that of a question sent alone")
    return {"seconds": [round(seconds, 3) for seconds in ended], "last_to_first": max(ended) / min(ended)}


async def _ask_at_once(address: str, videos: Sequence[bytes]) -> tuple[list[float], list[list[int]]]:
    async with AsyncClient(address) as client:
        began = time.perf_counter()

        async def ask(video: bytes) -> tuple[float, list[int]]:
            answer = await client.ask(QUESTION, video=video, max_new_tokens=NEW_TOKENS)
            return time.perf_counter() - began, answer.output_ids

        results = await asyncio.gather(*(ask(video) for video in videos))
    return [seconds for seconds, _ in results], [ids for _, ids in results]


def picture_and_video(bundle: Path, frames: int, rounds: int) -> dict[str, Any]:
    """Seconds of the encoder in this process, for an image and a video of `frames` frames in turn.

    Raises: StageFailed unless the image's tokens equal those of a video that repeats it.
    """
    opened = Bundle.open(bundle)
    encoder, size = MediaEncoder(opened), opened.config.pixels.size
    pixels = np.random.default_rng(0).integers(0, 256, (frames, size, size, 3), np.uint8)
    times: dict[str, list[float]] = {"picture": [], "video": []}
    for _ in range(rounds):
        for kind, media in (("picture", pixels[:1]), ("video", pixels)):
            began = time.perf_counter()
            table = encoder.encode(media)
            times[kind].append(time.perf_counter() - began)
            if kind == "picture" and frames == opened.config.num_frames:
                repeated = encoder.encode(np.repeat(media, frames, axis=0))
                if not np.array_equal(table, repeated):
                    raise StageFailed("an image's tokens differ from those of its repeated frame")
    return {kind: spread(values) for kind, values in times.items()}


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (336, 336, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
