"""What the OpenAI gateway adds to gRPC: one server, the same questions both ways in turn, equal answers."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from videollama_benchmarks.overhead.served import Served, converted_demo, serving, with_free_model
from videollama_benchmarks.overhead.ways import Timed, Way, over_grpc, through_gateway
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record
from videollama_client import Client
from videollama_core.protocol.errors import ParityFailed, StageFailed

CLIP = TREE / "benchmarks/shapes/held_out/00000.mp4"
QUESTION = "What happens in the video?"
STEP = 0.005  # seconds of a decoding step of the paced model: a small model on a GPU
KINDS = ("text", "repeated video")
WARM = 5
NOTES = (
    "The language model is our scheduler on an engine that costs nothing (paced: a step takes 5 ms). One caller asks each question over "
    "gRPC (`Client`) and through `vl2 serve --openai` (HTTP on one kept connection), in turn; the two texts are compared. Server, gateway "
    "and caller share the cores. Times begin with the question in the caller's hand: making the request, base64 and JSON included.",
    "`added` is the difference of the medians.",
)


def ask_both(ways: Mapping[str, Way], number: int, question: str, video: bytes | None, tokens: int) -> dict[str, Timed]:
    """The ways in turn. Raises: ParityFailed where two texts differ."""
    names = list(ways)
    place = number % len(names)
    found = {name: ways[name](question, video, tokens) for name in names[place:] + names[:place]}
    if len({timed.text for timed in found.values()}) != 1:
        raise ParityFailed(f"{question!r}: the gateway's text is not that of gRPC")
    return found


def first_text(ways: Mapping[str, Way], rounds: int) -> dict[str, dict[str, Any]]:
    """Kind of question -> way -> milliseconds until the first text."""
    taken: dict[str, dict[str, list[float]]] = {kind: {way: [] for way in ways} for kind in KINDS}
    video = CLIP.read_bytes()
    for number in range(WARM + rounds):
        for kind in KINDS:
            for way, timed in ask_both(ways, number, QUESTION, video if "video" in kind else None, 8).items():
                taken[kind][way].append(timed.first)
    return {kind: {way: _milliseconds(times[WARM:]) for way, times in both.items()} for kind, both in taken.items()}


def per_token(ways: Mapping[str, Way], tokens: int, rounds: int, served: Served) -> dict[str, Any]:
    """Way -> milliseconds of a token after the first; and the gateway's processor time for one."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    before = served.processor_seconds().get("gateway", 0.0)
    for number in range(rounds):
        for way, timed in ask_both(ways, number, QUESTION, None, tokens).items():
            taken[way].append(timed.per_token(tokens))
    spent = (served.processor_seconds().get("gateway", 0.0) - before) / (tokens * rounds)
    return {way: _milliseconds(times) for way, times in taken.items()} | {"processor": round(1e3 * spent, 4)}


def measure(bundle: Path, fast: bool) -> dict[str, Any]:
    questions, tokens, rounds = (20, 200, 4) if fast else (100, 1000, 10)
    found: dict[str, Any] = {}
    for model, step in (("free", 0.0), ("paced", STEP)):
        with serving(bundle, step, options=("--openai", "0")) as served, Client(served.address) as client:
            with through_gateway(served.openai) as gateway:
                ways = {"gRPC": over_grpc(client), "gateway": gateway}
                _wait(gateway)
                if not step:
                    found["first"] = first_text(ways, questions)
                found[model] = per_token(ways, tokens if not step else tokens // 4, rounds, served)
    return found


def _wait(gateway: Way) -> None:
    """It asks its servers once a second whether they are ready, and refuses until one is. Raises: StageFailed after 20 s."""
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
    return float(both["gateway"]["p50"] - both["gRPC"]["p50"])


def tables(found: dict[str, Any]) -> list[Table]:
    def row(name: str, both: dict[str, Any], *more: float) -> list[str | float | None]:
        return [name, both["gRPC"]["p50"], both["gateway"]["p50"], added(both), *more]

    columns = ["gRPC p50", "gateway p50", "added"]
    return [
        Table("Until the first text, ms", ["question", *columns], [row(kind, found["first"][kind]) for kind in KINDS]),
        Table(
            "A token after the first, ms",
            ["model", *columns, "processor time of the gateway"],
            [row(model, found[model], found[model]["processor"]) for model in ("free", "paced")],
        ),
    ]


def aims(found: dict[str, Any]) -> list[Aim]:
    first = [Aim(f"ms added until the first text, {kind}", added(found["first"][kind]), 1.0) for kind in KINDS]
    return first + [Aim(f"ms added to a token, {model}", added(found[model]), 0.2) for model in ("free", "paced")]


def main() -> None:
    asked = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(with_free_model(converted_demo(), Path(folder)), asked.fast)
    title = "The OpenAI gateway beside gRPC"
    record("gateway", title, tables(found), aims(found), NOTES, found, asked.fast, asked.out)


if __name__ == "__main__":
    main()
