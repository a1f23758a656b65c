"""Sends requests and notes what became of each.

Closed loop: so many callers, each asks when its last answer is whole. Open loop: requests arrive at a rate whatever the server does, and waiting counts from when a request was due."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from videollama_benchmarks.load.mix import Ask
from videollama_client import AsyncClient
from videollama_core.protocol.errors import VideoLlamaError


@dataclass
class Sample:
    """One request, in seconds from when it was due."""

    kind: str
    repeated: bool
    due: float  # since the run began
    first: float | None = None  # until its first text
    total: float | None = None  # until its answer was whole
    gaps: list[float] = field(default_factory=list)  # between two pieces of its text
    tokens: int = 0
    frames: int = 0  # of its video or picture, that the model looked at
    media_tokens: int = 0
    stages: dict[str, float] = field(default_factory=dict)  # the server's own clock
    error: str | None = None  # the kind of the error that it got


@dataclass(frozen=True)
class Load:
    """One level of load: `concurrency` callers, or `rate` requests a second."""

    seconds: float
    concurrency: int | None = None
    rate: float | None = None

    @property
    def title(self) -> str:
        if self.concurrency is None:
            return f"{self.rate:g} requests/s"
        return f"{self.concurrency} caller{'s' * (self.concurrency != 1)}"


async def ask_one(client: AsyncClient, ask: Ask, due: float, began: float, options: dict[str, Any]) -> Sample:
    sample = Sample(ask.kind, ask.repeated, due)
    start = began + due
    media: dict[str, Any] = {} if ask.media is None else {ask.kind: ask.media}
    try:
        stream = client.stream(ask.question, **media, **options)
        last = 0.0
        async for _ in stream:
            now = time.perf_counter() - start
            if sample.first is None:
                sample.first = now
            else:
                sample.gaps.append(now - last)
            last = now
        answer = await stream.answer()
    except VideoLlamaError as error:
        sample.error = error.kind
        return sample
    sample.total = time.perf_counter() - start
    if sample.first is None:  # an answer without text
        sample.first = sample.total
    sample.tokens, sample.media_tokens = answer.usage.completion_tokens, answer.usage.media_tokens
    sample.stages, sample.frames = answer.seconds, len(answer.frames)
    return sample


async def drive(
    client: AsyncClient,
    asks: Iterator[Ask],
    load: Load,
    options: dict[str, Any],
    seed: int,
    tell: Callable[[Sample], None] = lambda sample: None,
) -> tuple[list[Sample], float]:
    """All samples of the requests that were due within `load.seconds`, and the seconds until the last had ended."""
    samples: list[Sample] = []
    began = time.perf_counter()

    async def one(due: float) -> None:
        samples.append(await ask_one(client, next(asks), due, began, options))
        tell(samples[-1])

    async def caller() -> None:
        while (now := time.perf_counter() - began) < load.seconds:
            await one(now)

    if load.concurrency is not None:
        await asyncio.gather(*(caller() for _ in range(load.concurrency)))
    else:
        assert load.rate
        draw, due, running = random.Random(seed), 0.0, []
        while (due := due + draw.expovariate(load.rate)) < load.seconds:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            running.append(asyncio.create_task(one(due)))
        await asyncio.gather(*running)
    return samples, time.perf_counter() - began
