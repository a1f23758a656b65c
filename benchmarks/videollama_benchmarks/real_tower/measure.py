"""What is measured of one server: a first and a repeated question, a picture and a video, eight videos at once."""

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
    """Seconds until the first text and seconds of the encoder: a new video, the same again, a new picture, in turn."""
    kinds = ("first_video", "repeated_video", "picture")
    found: dict[str, dict[str, list[float]]] = {kind: {"first_text": [], "encoder": []} for kind in kinds}
    number = time.time_ns()
    with Client(address) as client:
        for place in range(rounds):
            video, picture = as_new(clip, number + place), _picture(number + place)
            asked: list[QuestionOptions] = [{"video": video}, {"video": video}, {"image": picture}]
            for kind, media in zip(kinds, asked, strict=True):
                media["max_new_tokens"] = NEW_TOKENS
                began = time.perf_counter()
                stream = client.stream(QUESTION, **media)
                pieces = iter(stream)
                next(pieces, None)  # an answer may have no text
                found[kind]["first_text"].append(time.perf_counter() - began)
                for _ in pieces:
                    pass
                found[kind]["encoder"].append(stream.answer.seconds["encoder"])
    return {kind: {name: spread(values) for name, values in both.items()} for kind, both in found.items()}


def wave(address: str, clip: bytes, callers: int = WAVE) -> dict[str, Any]:
    """Seconds until each of so many equal questions about new media was answered, all sent at once.

    Raises: StageFailed unless every answer is that of a question asked alone.
    """
    number = time.time_ns()
    with Client(address) as client:
        wanted = client.ask(QUESTION, video=as_new(clip, number), max_new_tokens=NEW_TOKENS).output_ids
    ended, answers = asyncio.run(_ask_at_once(address, [as_new(clip, number + 1 + n) for n in range(callers)]))
    if any(ids != wanted for ids in answers):
        raise StageFailed("an answer of the wave is not that of a question asked alone")
    return {"seconds": [round(each, 3) for each in ended], "last_to_first": max(ended) / min(ended)}


async def _ask_at_once(address: str, videos: Sequence[bytes]) -> tuple[list[float], list[list[int]]]:
    async with AsyncClient(address) as client:
        began = time.perf_counter()

        async def one(video: bytes) -> tuple[float, list[int]]:
            answer = await client.ask(QUESTION, video=video, max_new_tokens=NEW_TOKENS)
            return time.perf_counter() - began, answer.output_ids

        found = await asyncio.gather(*(one(video) for video in videos))
    return [seconds for seconds, _ in found], [ids for _, ids in found]


def picture_and_video(bundle: Path, frames: int, rounds: int) -> dict[str, Any]:
    """Seconds of the encoder in this process, a picture and so many frames in turn.

    Raises: StageFailed unless the picture's tokens are those of its frame repeated so many times.
    """
    opened = Bundle.open(bundle)
    encoder, size = MediaEncoder(opened), opened.config.pixels.size
    pixels = np.random.default_rng(0).integers(0, 256, (frames, size, size, 3), np.uint8)
    found: dict[str, list[float]] = {"picture": [], "video": []}
    for _ in range(rounds):
        for kind, media in (("picture", pixels[:1]), ("video", pixels)):
            began = time.perf_counter()
            table = encoder.encode(media)
            found[kind].append(time.perf_counter() - began)
            if kind == "picture" and frames == opened.config.num_frames:
                repeated = encoder.encode(np.repeat(media, frames, axis=0))
                if not np.array_equal(table, repeated):
                    raise StageFailed("a picture's tokens are not those of its frame repeated")
    return {kind: spread(values) for kind, values in found.items()}


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (336, 336, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
