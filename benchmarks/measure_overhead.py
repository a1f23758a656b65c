"""Measures the service's overhead outside its engines, with a real server whose language model takes no time.

With many concurrent callers: rates, fairness and processor time. With one caller: time before the first text and per token.
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
STEP = 0.005  # seconds of a decoding step of the paced model, as of a small model on a GPU
NOTES = (
    "The language model is our scheduler on an engine that takes no time (paced: a step takes 5 ms); its ids are checked. "
    "Server, stages and callers share the cores. Many callers are grpc.aio streams that read bytes; the single caller is our `Client`.",
    "The overhead before the first text is the time until it without the seconds of preprocess and encoder. Every question has the "
    "same text, so that its prompt is made once; a new text takes 0.2 ms more.",
)


def measure_server(bundle: Path, python: str, fast: bool) -> dict[str, Any]:
    rounds, seconds, tokens, questions = (2, 0.5, 200, 10) if fast else (5, 1.0, 800, 60)
    callers = CALLERS[::3] if fast else CALLERS
    with serving(bundle, python=python) as served:
        results: dict[str, Any] = {
            "first": measure.first_token(served, CLIP, questions),
            "token": measure.per_token(served, tokens, rounds),
            "free": [measure.ceiling(served, many, seconds, rounds) for many in callers],
        }
    with serving(bundle, STEP, python) as served:
        results["paced_token"] = measure.per_token(served, tokens // 4, rounds, STEP)
        results["paced"] = [measure.ceiling(served, many, seconds, rounds) for many in callers]
    return results


def tables(results: dict[str, dict[str, Any]]) -> list[Table]:
    single, many, processors = [], [], []
    for name, values in results.items():
        kinds = [values["first"][kind]["p50"] for kind in ("text", "first_video", "repeated_video")]
        single.append(
            [name, *kinds, values["token"]["beside_the_step"]["p50"], values["paced_token"]["beside_the_step"]["p50"]]
        )
        for model in ("free", "paced"):
            for level in values[model]:
                rates = [level[rate]["median"] for rate in ("tokens_per_second", "messages_per_second", "spread")]
                many.append([name, model, level["callers"], *rates])
                spent = level["processor_microseconds_per_token"]
                stages = ("callers", "endpoint", "tritonserver", "videollama2", "tensorrt_llm")
                processors.append([name, model, level["callers"], *(spent.get(stage, 0.0) for stage in stages)])
    keys = ["server", "model", "callers"]
    return [
        Table(
            "One caller, milliseconds (p50)",
            ["server", "text", "first video", "repeated video", "per token", "per token, paced"],
            single,
        ),
        Table("Many callers (medians)", [*keys, "tokens/s", "messages/s", "slowest / fastest"], many),
        Table(
            "Processor time, microseconds per token",
            [*keys, "callers", "endpoint", "tritonserver", "entry", "language model stage"],
            processors,
        ),
    ]


def aims(values: dict[str, Any]) -> list[Aim]:
    most = values["free"][-1]
    levels = [level for model in ("free", "paced") for level in values[model]]
    worst = max(level["spread"]["median"] for level in levels)
    messages = max(level["messages_per_second"]["median"] for level in levels)
    return [
        Aim(f"tokens/s in total, {most['callers']} callers", most["tokens_per_second"]["median"], 20_000, True),
        Aim("messages/s in total, highest", messages, 5_000, True),
        Aim("slowest / fastest of equal requests, largest", worst, 1.5),
        Aim("ms before the first text, text", values["first"]["text"]["p50"], 3.0),
        Aim("ms before the first text, repeated video", values["first"]["repeated_video"]["p50"], 3.0),
        Aim("ms per token, one caller", values["token"]["beside_the_step"]["p50"], 0.3),
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--bundle", type=Path, help=f"Serve this converted checkpoint; the default is tiny-shapes in {BUNDLE}."
    )
    parser.add_argument(
        "--server",
        action="append",
        metavar="NAME=PYTHON",
        help="Serve with this interpreter. Repeat the option to measure several in turn.",
    )
    options = parser.parse_args()
    bundle = options.bundle or BUNDLE
    if options.bundle is None:
        convert = [sys.executable, "-m", "videollama_client", "convert", str(TREE / "training/checkpoints/tiny-shapes")]
        subprocess.run([*convert, "--out", str(bundle)], check=True, stdout=subprocess.DEVNULL)
    servers = dict(server.split("=", 1) for server in options.server or ()) or {"here": sys.executable}
    with tempfile.TemporaryDirectory() as folder:
        free = with_free_model(bundle, Path(folder))
        results = {name: measure_server(free, python, options.fast) for name, python in servers.items()}
    last = list(results)[-1]
    title = "Overhead of the service"
    record("overhead", title, tables(results), aims(results[last]), NOTES, results, options.fast, options.out)


if __name__ == "__main__":
    main()
