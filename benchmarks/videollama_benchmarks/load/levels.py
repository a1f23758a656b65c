"""Measures the levels of load of one run, one after the other."""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from videollama_benchmarks.load.drive import Load, drive
from videollama_benchmarks.load.mix import make_requests
from videollama_benchmarks.load.numbers import Target, knee, summarise
from videollama_client import AsyncClient

FLAT = 2  # a sweep ends after this many levels without a gain in goodput


@dataclass(frozen=True)
class Traffic:
    """What is sent at each level.

    Attributes:
        weights: of the kinds of media.
        files: the media of each kind.
        repeat: share of the requests that reuse media of earlier ones.
        options: of `AsyncClient.stream`.
        warmup: seconds of load before each level is measured.
    """

    weights: dict[str, float]
    files: dict[str, list[bytes]]
    repeat: float
    seed: int
    options: dict[str, Any]
    warmup: float


async def measure_levels(
    connection: dict[str, Any], loads: Sequence[Load], traffic: Traffic, target: Target, until_flat: bool
) -> list[dict[str, Any]]:
    """Measure each level, with a progress bar on stderr.

    Args:
        connection: keyword arguments of `AsyncClient`.
        until_flat: end after FLAT levels without a gain.
    Raises: ServerUnreachable if the server is not ready within 10 s.
    """
    levels: list[dict[str, Any]] = []
    async with AsyncClient(**connection) as client:
        await client.wait_until_ready(10.0)
        for place, load in enumerate(loads):
            requests = make_requests(traffic.weights, traffic.files, traffic.repeat, traffic.seed + place)
            if traffic.warmup:
                warmup = Load(traffic.warmup, load.concurrency, load.rate)
                await drive(client, requests, warmup, traffic.options, traffic.seed)
            with tqdm(desc=load.title, unit=" answers", file=sys.stderr, leave=False, mininterval=0.5) as bar:
                count = functools.partial(_count, bar)
                samples, taken = await drive(client, requests, load, traffic.options, traffic.seed, count)
            levels.append(summarise(samples, taken, load, target))
            best = levels.index(knee(levels))
            if until_flat and len(levels) - 1 - best >= FLAT:
                break
    return levels


def _count(bar: Any, sample: Any) -> None:
    bar.update()
