"""Measurements of one server: its maximum throughput with many callers, and its overhead for one caller."""

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

from videollama_benchmarks.load.mix import as_new
from videollama_benchmarks.overhead.callers import ask_at_once, spread
from videollama_benchmarks.overhead.served import RunningServer
from videollama_client import Client, QuestionOptions

_TEXT = "What is a video?"
_VIDEO = "What happens in the video?"
_FEW, MOST_TOKENS, _ESTIMATES = 100, 16_000, 3
_ENGINES = ("preprocess", "encoder")  # their seconds do not count as overhead


def ceiling(served: RunningServer, callers: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Rates over several rounds, as median and all values; every answer is checked.

    Args:
        seconds: approximate duration of a round, which decides the length of the answers.
    """
    tokens = _FEW
    for _ in range(_ESTIMATES):
        taken = max(read.times[-1] for read in asyncio.run(ask_at_once(served.address, callers, tokens)))
        tokens = round(min(max(tokens * seconds / taken, _FEW), MOST_TOKENS))
    rates: dict[str, list[float]] = {name: [] for name in ("tokens_per_second", "messages_per_second", "spread")}
    processors: dict[str, float] = {}
    for _ in range(rounds):
        before, own = served.processor_seconds(), time.process_time()
        reads = asyncio.run(ask_at_once(served.address, callers, tokens))
        own = time.process_time() - own
        seconds = max(read.times[-1] for read in reads)
        for read in reads:
            read.answer(tokens)
        rates["tokens_per_second"].append(callers * tokens / seconds)
        rates["messages_per_second"].append(sum(len(read.messages) for read in reads) / seconds)
        rates["spread"].append(spread(reads))
        for name, value in (served.processor_seconds() | {"callers": own}).items():
            spent = value - before.get(name, 0.0)
            processors[name] = processors.get(name, 0.0) + spent / (rounds * callers * tokens)
    return {
        "callers": callers,
        "tokens": tokens,
        **{name: {"median": round(median(values), 3), "all": _rounded(values)} for name, values in rates.items()},
        "processor_microseconds_per_token": _microseconds(processors),
    }


def first_token(served: RunningServer, clip: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds until the first text without the engines' time: text, a new video and the same video again, in turn."""
    content = clip.read_bytes()
    times: dict[str, list[float]] = {"text": [], "first_video": [], "repeated_video": []}
    number = time.time_ns()
    with Client(served.address) as client:
        for place in range(rounds + 3):
            video = as_new(content, number + place)
            for name, question, media in (
                ("text", _TEXT, None),
                ("first_video", _VIDEO, video),
                ("repeated_video", _VIDEO, video),
            ):
                value = _first_text(client, question, media)
                if place >= 3:  # after the warm-up
                    times[name].append(value)
    return {name: _percentiles(values) for name, values in times.items()}


def _first_text(client: Client, question: str, video: bytes | None) -> float:
    options: QuestionOptions = {"max_new_tokens": 8}
    if video is not None:
        options["video"] = video
    began = time.perf_counter()
    stream = client.stream(question, **options)
    pieces = iter(stream)
    next(pieces)
    taken = time.perf_counter() - began
    for _ in pieces:
        pass
    return taken - sum(stream.answer.seconds.get(name, 0.0) for name in _ENGINES)


def per_token(served: RunningServer, tokens: int, rounds: int, step: float = 0.0) -> dict[str, Any]:
    """Milliseconds per token after the first for one caller, without the model's step, and processor time of all processes."""
    times, busy = [], []
    with Client(served.address) as client:
        client.ask(_TEXT, max_new_tokens=8)
        for _ in range(rounds):
            before, own = sum(served.processor_seconds().values()), time.process_time()
            stream = client.stream(_TEXT, max_new_tokens=tokens)
            pieces = iter(stream)
            next(pieces)
            began = time.perf_counter()
            for _ in pieces:
                pass
            times.append((time.perf_counter() - began) / (tokens - 1) - step)
            spent = sum(served.processor_seconds().values()) - before + time.process_time() - own
            busy.append(spent / tokens)
    return {
        "step_milliseconds": 1e3 * step,
        "beside_the_step": _percentiles(times),
        "processor_milliseconds": _percentiles(busy),
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": round(1e3 * median(ordered), 3),
        "p90": round(1e3 * ordered[int(0.9 * (len(ordered) - 1))], 3),
        "least": round(1e3 * ordered[0], 3),
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _microseconds(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(1e6 * value, 1) for name, value in sorted(seconds.items()) if value > 0}
