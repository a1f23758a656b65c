"""What the service costs beside its engines: a real server whose language model costs nothing.

Many callers at once (rates, fairness, processor time), and one caller (before the first text, beside each token).
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from videollama_benchmarks.overhead import measure
from videollama_benchmarks.overhead.served import serving, with_free_model
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record

CLIP = TREE / "benchmarks/shapes/held_out/00000.mp4"
BUNDLE = TREE / "build/bench/tiny-shapes"
CALLERS = (1, 8, 16, 32)
STEP = 0.005  # seconds of a decoding step of the paced model: a small model on a GPU
NOTES = (
    "The language model is our scheduler on an engine that costs nothing (paced: a step takes 5 ms); its ids are checked. "
    "Server, stages and callers share the cores. Callers are grpc.aio streams that read bytes; the one caller is our `Client`.",
    "Overhead before the first text is the time until it, less the seconds of preprocess and encoder.",
)


def measure_server(bundle: Path, python: str, fast: bool) -> dict[str, Any]:
    rounds, seconds, tokens, questions = (2, 0.5, 200, 10) if fast else (5, 1.0, 800, 60)
    callers = CALLERS[::3] if fast else CALLERS
    with serving(bundle, python=python) as served:
        found: dict[str, Any] = {
            "first": measure.first_token(served, CLIP, questions),
            "token": measure.per_token(served, tokens, rounds),
            "free": [measure.ceiling(served, many, seconds, rounds) for many in callers],
        }
    with serving(bundle, STEP, python) as served:
        found["paced_token"] = measure.per_token(served, tokens // 4, rounds, STEP)
        found["paced"] = [measure.ceiling(served, many, seconds, rounds) for many in callers]
    return found


def tables(found: dict[str, dict[str, Any]]) -> list[Table]:
    one, many, processors = [], [], []
    for name, values in found.items():
        kinds = [values["first"][kind]["p50"] for kind in ("text", "first_video", "repeated_video")]
        one.append(
            [name, *kinds, values["token"]["beside_the_step"]["p50"], values["paced_token"]["beside_the_step"]["p50"]]
        )
        for model in ("free", "paced"):
            for level in values[model]:
                rates = [level[rate]["median"] for rate in ("tokens_per_second", "messages_per_second", "spread")]
                many.append([name, model, level["callers"], *rates])
                spent = level["processor_microseconds_per_token"]
                stages = ("callers", "endpoint", "tritonserver", "videollama2", "tensorrt_llm")
                processors.append([name, model, level["callers"], *(spent.get(stage, 0.0) for stage in stages)])
    who = ["server", "model", "callers"]
    return [
        Table(
            "One caller, milliseconds (p50)",
            ["server", "text", "first video", "repeated video", "a token", "a token, paced"],
            one,
        ),
        Table("Many callers, median", [*who, "tokens/s", "messages/s", "slowest / fastest"], many),
        Table(
            "Processor time, microseconds a token",
            [*who, "callers", "endpoint", "tritonserver", "entry", "language model's stage"],
            processors,
        ),
    ]


def aims(values: dict[str, Any]) -> list[Aim]:
    most = values["free"][-1]
    levels = [level for model in ("free", "paced") for level in values[model]]
    worst = max(level["spread"]["median"] for level in levels)
    messages = max(level["messages_per_second"]["median"] for level in levels)
    return [
        Aim(f"tokens/s in all, {most['callers']} callers", most["tokens_per_second"]["median"], 20_000, True),
        Aim("messages/s in all, the most", messages, 5_000, True),
        Aim("slowest / fastest of equal requests, the worst", worst, 1.5),
        Aim("ms before the first text, text", values["first"]["text"]["p50"], 3.0),
        Aim("ms before the first text, repeated video", values["first"]["repeated_video"]["p50"], 3.0),
        Aim("ms a token, one caller", values["token"]["beside_the_step"]["p50"], 0.3),
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bundle", type=Path, help=f"a converted checkpoint; tiny-shapes in {BUNDLE}")
    parser.add_argument(
        "--server", action="append", metavar="NAME=PYTHON", help="serve by this interpreter, in turn with others"
    )
    asked = parser.parse_args()
    bundle = asked.bundle or BUNDLE
    if asked.bundle is None:
        convert = [sys.executable, "-m", "videollama_client", "convert", str(TREE / "training/checkpoints/tiny-shapes")]
        subprocess.run([*convert, "--out", str(bundle)], check=True, stdout=subprocess.DEVNULL)
    servers = dict(server.split("=", 1) for server in asked.server or ()) or {"here": sys.executable}
    with tempfile.TemporaryDirectory() as folder:
        free = with_free_model(bundle, Path(folder))
        found = {name: measure_server(free, python, asked.fast) for name, python in servers.items()}
    last = list(found)[-1]
    title = "The service beside its engines"
    record("overhead", title, tables(found), aims(found[last]), NOTES, found, asked.fast, asked.out)


if __name__ == "__main__":
    main()
