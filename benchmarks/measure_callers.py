"""Measures a server's answers and tokens per second with 1 to 32 callers, compared with a plain PyTorch loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from videollama_benchmarks.load.mix import as_new
from videollama_benchmarks.overhead.served import converted_demo, serving
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record, spread
from videollama_client import AsyncClient
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.errors import ParityFailed
from videollama_core.protocol.messages import SamplingOptions

CHECKPOINT = TREE / "training/checkpoints/tiny-shapes"
CLIPS = sorted((TREE / "benchmarks/shapes/held_out").glob("*.mp4"))[:16]
QUESTION = "Describe the video."
TOKENS = 32  # maximum length of an answer
CALLERS = (1, 4, 8, 16, 32)
QUESTIONS = 64  # per round
NOTES = (
    "tiny-shapes, float32, greedy decoding, answers of at most 32 tokens; server, stages and callers share the cores. The loop is "
    "`videollama_core.pipeline`: one question after another in one process, with PyTorch's default number of threads. Every answer of "
    "the server is compared with the loop's, id by id. New videos miss every cache; the repeated video was asked about before.",
)


def plain_loop(pipeline: Pipeline, videos: Sequence[bytes]) -> tuple[float, int, list[list[int]]]:
    """Answer one question after another. Returns: seconds, number of tokens, ids of each answer."""
    began, options = time.perf_counter(), SamplingOptions(max_new_tokens=TOKENS)
    conversation = [{"role": "user", "content": QUESTION}]
    ids = [pipeline.answer(conversation, "video", [video], options=options).output_ids for video in videos]
    return time.perf_counter() - began, sum(map(len, ids)), ids


def served(address: str, videos: Sequence[bytes], callers: int) -> tuple[float, int, list[list[int]]]:
    """The same with concurrent callers, each of which sends its next question when its answer is complete."""
    return asyncio.run(_served(address, videos, callers))


async def _served(address: str, videos: Sequence[bytes], callers: int) -> tuple[float, int, list[list[int]]]:
    ids: list[list[int]] = [[] for _ in videos]
    waiting = list(enumerate(videos))[::-1]
    async with AsyncClient(address) as client:

        async def caller() -> None:
            while waiting:
                place, video = waiting.pop()
                ids[place] = (await client.ask(QUESTION, video=video, max_new_tokens=TOKENS)).output_ids

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        taken = time.perf_counter() - began
    return taken, sum(map(len, ids)), ids


def measure(address: str, pipeline: Pipeline, questions: int, rounds: int, levels: Sequence[int]) -> dict[str, Any]:
    """Answers and tokens per second by variant, all variants in turn. Raises: ParityFailed if an answer differs from the loop's."""
    clips = [path.read_bytes() for path in CLIPS]
    expected = plain_loop(pipeline, clips)[2]
    number = time.time_ns()

    def new_videos() -> list[bytes]:
        nonlocal number
        number += questions
        return [as_new(clips[n % len(clips)], number + n) for n in range(questions)]

    def repeated() -> list[bytes]:
        return [clips[0]] * questions

    variants: dict[str, tuple[Callable[[], list[bytes]], int]] = {
        f"{kind}, {callers}": (videos, callers)
        for kind, videos in (("new", new_videos), ("repeated", repeated))
        for callers in (0, *levels)
    }
    rates: dict[str, dict[str, list[float]]] = {name: {"answers": [], "tokens": []} for name in variants}
    served(address, repeated(), max(levels))  # warms up, and caches the repeated video
    for _ in range(rounds):
        for name, (make, callers) in variants.items():
            videos = make()[: questions if callers else questions // 4]
            seconds, tokens, ids = served(address, videos, callers) if callers else plain_loop(pipeline, videos)
            for place, answer in enumerate(ids):
                if answer != expected[place % len(clips) if name.startswith("new") else 0]:
                    raise ParityFailed(f"{name}: answer {place} differs from the plain loop's")
            rates[name]["answers"].append(len(videos) / seconds)
            rates[name]["tokens"].append(tokens / seconds)
    return {name: {unit: spread(values) for unit, values in both.items()} for name, both in rates.items()}


def tables(results: dict[str, Any]) -> list[Table]:
    rows = []
    for name, both in results.items():
        kind, callers = name.split(", ")
        loop = results[f"{kind}, 0"]
        answers, tokens = both["answers"]["median"], both["tokens"]["median"]
        asked_by = "plain loop" if callers == "0" else f"{callers} caller{'s' * (callers != '1')}"
        rows.append([f"a {kind} video", asked_by, answers, tokens, answers / loop["answers"]["median"]])
    return [Table("", ["question about", "asked by", "answers/s", "tokens/s", "relative to the loop"], rows)]


def aims(results: dict[str, Any]) -> list[Aim]:
    def ratio(kind: str) -> float:
        return results[f"{kind}, 8"]["answers"]["median"] / results[f"{kind}, 0"]["answers"]["median"]

    return [
        Aim("8 callers / plain loop, new videos", ratio("new"), 1.9, True),
        Aim("8 callers / plain loop, one repeated video", ratio("repeated"), 5.0, True),
    ]


def main() -> None:
    options = arguments(__doc__).parse_args()
    pipeline = Pipeline(Path(CHECKPOINT))
    questions, rounds, levels = (32, 2, (1, 8)) if options.fast else (QUESTIONS, 5, CALLERS)
    with torch.inference_mode(), serving(converted_demo()) as server:
        results = measure(server.address, pipeline, questions, rounds, levels)
    title = "Concurrent callers compared with a plain loop"
    record("callers", title, tables(results), aims(results), NOTES, results, options.fast, options.out)


if __name__ == "__main__":
    main()
