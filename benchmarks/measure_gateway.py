"""Measures the OpenAI gateway's overhead over gRPC: the same questions to one server over both, in turn, with equal answers."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from videollama_benchmarks.overhead.served import RunningServer, converted_demo, serving, with_free_model
from videollama_benchmarks.overhead.transports import TimedAnswer, Transport, over_grpc, through_gateway
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record
from videollama_client import Client
from videollama_core.protocol.errors import ParityFailed, StageFailed

CLIP = TREE / "benchmarks/shapes/held_out/00000.mp4"
QUESTION = "What happens in the video?"
STEP = 0.005  # seconds of a decoding step of the paced model, as of a small model on a GPU
KINDS = ("text", "repeated video")
WARM = 5
NOTES = (
    "The language model is our scheduler on an engine that takes no time (paced: a step takes 5 ms). One caller asks each question over "
    "gRPC (`Client`) and through `vl2 serve --openai` (HTTP over one persistent connection), in turn; the two texts are compared. Server, "
    "gateway and caller share the cores. Times start before the request is built, so base64 and JSON encoding are included.",
    "`added` is the difference of the medians.",
)


def ask_both(
    transports: Mapping[str, Transport], number: int, question: str, video: bytes | None, tokens: int
) -> dict[str, TimedAnswer]:
    """Ask over all transports in turn. Raises: ParityFailed if two texts differ."""
    names = list(transports)
    start = number % len(names)
    answers = {name: transports[name](question, video, tokens) for name in names[start:] + names[:start]}
    if len({answer.text for answer in answers.values()}) != 1:
        raise ParityFailed(f"{question!r}: the gateway's text differs from that over gRPC")
    return answers


def first_text(transports: Mapping[str, Transport], rounds: int) -> dict[str, dict[str, Any]]:
    """Kind of question -> transport -> milliseconds until the first text."""
    taken: dict[str, dict[str, list[float]]] = {kind: {transport: [] for transport in transports} for kind in KINDS}
    video = CLIP.read_bytes()
    for number in range(WARM + rounds):
        for kind in KINDS:
            for transport, answer in ask_both(
                transports, number, QUESTION, video if "video" in kind else None, 8
            ).items():
                taken[kind][transport].append(answer.first)
    return {
        kind: {transport: _milliseconds(times[WARM:]) for transport, times in both.items()}
        for kind, both in taken.items()
    }


def per_token(transports: Mapping[str, Transport], tokens: int, rounds: int, served: RunningServer) -> dict[str, Any]:
    """Transport -> milliseconds per token after the first; and the gateway's processor time in milliseconds per token."""
    taken: dict[str, list[float]] = {transport: [] for transport in transports}
    before = served.processor_seconds().get("gateway", 0.0)
    for number in range(rounds):
        for transport, answer in ask_both(transports, number, QUESTION, None, tokens).items():
            taken[transport].append(answer.per_token(tokens))
    spent = (served.processor_seconds().get("gateway", 0.0) - before) / (tokens * rounds)
    return {transport: _milliseconds(times) for transport, times in taken.items()} | {
        "processor": round(1e3 * spent, 4)
    }


def measure(bundle: Path, fast: bool) -> dict[str, Any]:
    questions, tokens, rounds = (20, 200, 4) if fast else (100, 1000, 10)
    results: dict[str, Any] = {}
    for model, step in (("free", 0.0), ("paced", STEP)):
        with serving(bundle, step, options=("--openai", "0")) as served, Client(served.address) as client:
            with through_gateway(served.openai) as gateway:
                transports = {"gRPC": over_grpc(client), "gateway": gateway}
                _wait(gateway)
                if not step:
                    results["first"] = first_text(transports, questions)
                results[model] = per_token(transports, tokens if not step else tokens // 4, rounds, served)
    return results


def _wait(gateway: Transport) -> None:
    """Wait until the gateway, which polls its servers once a second, accepts requests. Raises: StageFailed after 20 s."""
    deadline = time.monotonic() + 20
    while True:
        try:
            gateway(QUESTION, None, 2)
            return
        except StageFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    named = {"p50": median(ordered), "p90": ordered[int(0.9 * (len(ordered) - 1))], "least": ordered[0]}
    return {name: round(1e3 * value, 4) for name, value in named.items()}


def added(both: Mapping[str, Any]) -> float:
    """Difference of the medians in milliseconds."""
    return float(both["gateway"]["p50"] - both["gRPC"]["p50"])


def tables(results: dict[str, Any]) -> list[Table]:
    def row(name: str, both: dict[str, Any], *more: float) -> list[str | float | None]:
        return [name, both["gRPC"]["p50"], both["gateway"]["p50"], added(both), *more]

    columns = ["gRPC p50", "gateway p50", "added"]
    return [
        Table(
            "Time until the first text, ms",
            ["question", *columns],
            [row(kind, results["first"][kind]) for kind in KINDS],
        ),
        Table(
            "Time per token after the first, ms",
            ["model", *columns, "gateway's processor time"],
            [row(model, results[model], results[model]["processor"]) for model in ("free", "paced")],
        ),
    ]


def aims(results: dict[str, Any]) -> list[Aim]:
    first = [Aim(f"ms added until the first text, {kind}", added(results["first"][kind]), 1.0) for kind in KINDS]
    return first + [Aim(f"ms added to a token, {model}", added(results[model]), 0.2) for model in ("free", "paced")]


def main() -> None:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(with_free_model(converted_demo(), Path(folder)), options.fast)
    title = "The OpenAI gateway compared with gRPC"
    record("gateway", title, tables(results), aims(results), NOTES, results, options.fast, options.out)


if __name__ == "__main__":
    main()
