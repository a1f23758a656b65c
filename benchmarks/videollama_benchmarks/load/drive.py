"""Sends requests and records the outcome of each.

Closed loop: a fixed number of callers, each of which sends its next request when its last answer is complete. Open loop: requests
are sent at a fixed rate, independent of the server, and latency counts from when a request was due.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from videollama_benchmarks.load.mix import LoadRequest
from videollama_client import AsyncClient
from videollama_core.protocol.errors import VideoLlamaError


@dataclass
class Sample:
    """The outcome of one request; times in seconds from when it was due."""

    kind: str
    repeated: bool
    due: float  # seconds since the run began
    first: float | None = None  # until the first text
    total: float | None = None  # until the answer was complete
    gaps: list[float] = field(default_factory=list)  # between consecutive pieces of text
    tokens: int = 0
    frames: int = 0  # of the video or image that the model was given
    media_tokens: int = 0
    stages: dict[str, float] = field(default_factory=dict)  # seconds per stage, by the server's clock
    error: str | None = None  # kind of the error


@dataclass(frozen=True)
class Load:
    """One level of load: `concurrency` callers, or `rate` requests per second."""

    seconds: float
    concurrency: int | None = None
    rate: float | None = None

    @property
    def title(self) -> str:
        if self.concurrency is None:
            return f"{self.rate:g} requests/s"
        return f"{self.concurrency} caller{'s' * (self.concurrency != 1)}"


async def send_request(
    client: AsyncClient, request: LoadRequest, due: float, began: float, options: dict[str, Any]
) -> Sample:
    """Send one request and wait for its answer. Args: began: the run's start by `time.perf_counter`; options: of `stream`."""
    sample = Sample(request.kind, request.repeated, due)
    start = began + due
    media: dict[str, Any] = {} if request.media is None else {request.kind: request.media}
    try:
        stream = client.stream(request.question, **media, **options)
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
    requests: Iterator[LoadRequest],
    load: Load,
    options: dict[str, Any],
    seed: int,
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> tuple[list[Sample], float]:
    """Returns: samples of all requests that were due within `load.seconds`, and the seconds until the last had ended."""
    samples: list[Sample] = []
    began = time.perf_counter()

    async def send(due: float) -> None:
        samples.append(await send_request(client, next(requests), due, began, options))
        on_sample(samples[-1])

    async def caller() -> None:
        while (now := time.perf_counter() - began) < load.seconds:
            await send(now)

    if load.concurrency is not None:
        await asyncio.gather(*(caller() for _ in range(load.concurrency)))
    else:
        assert load.rate
        draw, due, running = random.Random(seed), 0.0, []
        while (due := due + draw.expovariate(load.rate)) < load.seconds:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            running.append(asyncio.create_task(send(due)))
        await asyncio.gather(*running)
    return samples, time.perf_counter() - began
