"""Measures whether the memory of a server's processes grows over many mixed requests.

The mix has new and repeated videos, images and text, in a closed loop; memory is read while the server is idle.
"""

import asyncio
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videollama_benchmarks.load.drive import send_request
from videollama_benchmarks.load.mix import LoadRequest, find_media, make_requests, parse_mix
from videollama_benchmarks.overhead.served import DEMO, RunningServer, converted_demo, serving
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record
from videollama_client import AsyncClient

MEDIA = (TREE / "benchmarks/shapes/held_out",)
MIX, REPEAT, CALLERS = "video=6,image=2,text=2", 0.3, 8
OPTIONS = {"max_new_tokens": 8, "temperature": 0.0, "timeout": 120.0}
BEGIN, INTERVAL = 500, 500  # number of requests before memory is compared, and between two readings
SETTLE_SECONDS = 1.0
CACHE_MEGABYTES = 4  # small, so that the media cache is full before memory is compared
GROWTH = 2.0  # maximum percentage between request 500 and the last
NOTES = (
    f"{CALLERS} callers, `{MIX}`; a share of {REPEAT:g} of the media was sent before, and new media is sent as bytes that the server "
    f"has never received. The media cache (`--media-cache-megabytes {CACHE_MEGABYTES}`) is full before memory is compared. MB are "
    "resident memory (RSS) of all processes of that name, read while the server is idle.",
)


async def _ask(client: AsyncClient, requests: Iterator[LoadRequest], count: int) -> dict[str, int]:
    """Send `count` requests. Returns: number of errors by kind."""
    places, errors = iter(range(count)), dict[str, int]()

    async def caller() -> None:
        for _ in places:
            sample = await send_request(client, next(requests), 0.0, time.perf_counter(), OPTIONS)
            if sample.error is not None:
                errors[sample.error] = errors.get(sample.error, 0) + 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return errors


async def _measure(served: RunningServer, count: int, interval: int) -> list[dict[str, Any]]:
    """Read memory after every `interval` of `count` requests."""
    weights = parse_mix(MIX)
    requests = make_requests(weights, find_media(MEDIA, list(weights)), REPEAT, seed=0)
    readings: list[dict[str, Any]] = []
    async with AsyncClient(served.address) as client:
        for sent in itertools.count(interval, interval):
            if sent > count:
                return readings
            errors = await _ask(client, requests, interval)
            await asyncio.sleep(SETTLE_SECONDS)
            readings.append({"requests": sent, "errors": errors, "megabytes": served.megabytes()})
            print(readings[-1], flush=True)
    return readings


def growth(readings: list[dict[str, Any]], begin: int) -> dict[str, float]:
    """Process -> growth in percent from request `begin` to the last."""
    first = next(reading for reading in readings if reading["requests"] >= begin)
    return {name: 100 * (value / first["megabytes"][name] - 1) for name, value in readings[-1]["megabytes"].items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--bundle", type=Path, help=f"Serve this converted checkpoint; the default is tiny-shapes in {DEMO}."
    )
    parser.add_argument(
        "--requests", type=int, help="Send this many requests; the default is 2000, or 300 with --fast."
    )
    options = parser.parse_args()
    bundle, requests = options.bundle or converted_demo(), options.requests or (300 if options.fast else 2000)
    begin, interval = (100, 100) if options.fast else (BEGIN, INTERVAL)
    with serving(bundle, options=("--media-cache-megabytes", str(CACHE_MEGABYTES))) as served:
        readings = asyncio.run(_measure(served, requests, interval))
    grown = growth(readings, begin)
    counts = [reading["requests"] for reading in readings]
    rows = [
        [name, *(reading["megabytes"][name] for reading in readings), f"{value:+.1f} %"]
        for name, value in sorted(grown.items(), key=lambda item: -item[1])
    ]
    table = Table("MB after this many requests", ["process", *map(str, counts), f"growth from {begin}"], rows)
    worst = max(grown, key=functools.partial(dict.__getitem__, grown))
    aims = [Aim(f"largest growth ({worst}), % from request {begin} to {requests}", grown[worst], GROWTH)]
    record("memory", "Memory over many requests", [table], aims, NOTES, readings, options.fast, options.out)


if __name__ == "__main__":
    main()
