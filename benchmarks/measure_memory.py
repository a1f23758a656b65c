"""Memory of every process of a server over many mixed requests: flat, or growing?

The mix is new and repeated videos, pictures and text, in a closed loop; memory is read while nothing runs.
"""

import asyncio
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videollama_benchmarks.load.drive import ask_one
from videollama_benchmarks.load.mix import Ask, find_media, make_asks, parse_mix
from videollama_benchmarks.overhead.served import DEMO, Served, converted_demo, serving
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record
from videollama_client import AsyncClient

MEDIA = (TREE / "benchmarks/shapes/held_out",)
MIX, REPEAT, CALLERS = "video=6,image=2,text=2", 0.3, 8
OPTIONS = {"max_new_tokens": 8, "temperature": 0.0, "timeout": 120.0}
BEGIN, LOOKS = 500, 500  # requests before memory is compared, and between two looks
SETTLE_SECONDS = 1.0
CACHE_MEGABYTES = 4  # full before memory is compared: what is kept about media grows up to this size by design
GROWTH = 2.0  # per cent between request 500 and the last
NOTES = (
    f"{CALLERS} callers, `{MIX}`, a share of {REPEAT:g} of the media was asked about before; new media is sent as bytes that the server "
    f"never met. The media cache (`--media-cache-megabytes {CACHE_MEGABYTES}`) is full before. MB are resident memory (RSS) of all processes of that name, read while nothing ran.",
)


async def _ask(client: AsyncClient, asks: Iterator[Ask], count: int) -> dict[str, int]:
    """Errors by kind."""
    places, errors = iter(range(count)), dict[str, int]()

    async def caller() -> None:
        for _ in places:
            sample = await ask_one(client, next(asks), 0.0, time.perf_counter(), OPTIONS)
            if sample.error is not None:
                errors[sample.error] = errors.get(sample.error, 0) + 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return errors


async def _measure(served: Served, requests: int, looks: int) -> list[dict[str, Any]]:
    """One look after every `looks` requests."""
    weights = parse_mix(MIX)
    asks = make_asks(weights, find_media(MEDIA, list(weights)), REPEAT, seed=0)
    found: list[dict[str, Any]] = []
    async with AsyncClient(served.address) as client:
        for asked in itertools.count(looks, looks):
            if asked > requests:
                return found
            errors = await _ask(client, asks, looks)
            await asyncio.sleep(SETTLE_SECONDS)
            found.append({"requests": asked, "errors": errors, "megabytes": served.megabytes()})
            print(found[-1], flush=True)
    return found


def growth(looks: list[dict[str, Any]], begin: int) -> dict[str, float]:
    """Process -> per cent that it grew by from request `begin` to the last."""
    first = next(look for look in looks if look["requests"] >= begin)
    return {name: 100 * (value / first["megabytes"][name] - 1) for name, value in looks[-1]["megabytes"].items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bundle", type=Path, help=f"a converted checkpoint; tiny-shapes in {DEMO}")
    parser.add_argument("--requests", type=int, help="2000; 300 with --fast")
    asked = parser.parse_args()
    bundle, requests = asked.bundle or converted_demo(), asked.requests or (300 if asked.fast else 2000)
    begin, looks = (100, 100) if asked.fast else (BEGIN, LOOKS)
    with serving(bundle, options=("--media-cache-megabytes", str(CACHE_MEGABYTES))) as served:
        found = asyncio.run(_measure(served, requests, looks))
    grown = growth(found, begin)
    counts = [look["requests"] for look in found]
    rows = [
        [name, *(look["megabytes"][name] for look in found), f"{value:+.1f} %"]
        for name, value in sorted(grown.items(), key=lambda item: -item[1])
    ]
    table = Table("MB after so many requests", ["process", *map(str, counts), f"from {begin} on"], rows)
    worst = max(grown, key=functools.partial(dict.__getitem__, grown))
    aims = [Aim(f"% that {worst}, the worst, grew by from request {begin} to {requests}", grown[worst], GROWTH)]
    record("memory", "Memory over many requests", [table], aims, NOTES, found, asked.fast, asked.out)


if __name__ == "__main__":
    main()
