"""Measures the time from `vl2 serve` to ready, and from SIGTERM to exit, with one question answered in between."""

import time
from pathlib import Path
from typing import Any

from videollama_benchmarks.overhead.served import converted_demo, serving
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record, spread
from videollama_client import Client

CLIP = TREE / "benchmarks/shapes/held_out/00000.mp4"
READY_SECONDS, STOP_SECONDS = 3.0, 2.0
NOTES = (
    "The demo's bundle (tiny-shapes), with its files in the page cache. Ready is the line `ready:`, after which a question about a clip "
    "is answered; processor time is that of all processes of the server until then.",
)


def run(bundle: Path) -> dict[str, Any]:
    began = time.perf_counter()
    with serving(bundle) as served:
        ready = time.perf_counter() - began
        spent = served.processor_seconds()
        with Client(served.address) as client:
            client.ask("What happens?", video=CLIP, max_new_tokens=4, timeout=60)
        began = time.perf_counter()
    return {"ready": ready, "stop": time.perf_counter() - began, "processor": spent}


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    bundle = converted_demo()
    run(bundle)  # fills the page cache and writes bytecode
    results = [run(bundle) for _ in range(2 if options.fast else 9)]
    rows: list[list[str | float | None]] = []
    aims = []
    for name, title, limit in (("ready", "start to ready", READY_SECONDS), ("stop", "SIGTERM to exit", STOP_SECONDS)):
        seconds = spread([result[name] for result in results])
        rows.append([title, *(seconds[part] for part in ("median", "least", "most", "runs"))])
        aims.append(Aim(f"seconds from {title}, median", seconds["median"], limit))
    names = sorted({name for result in results for name in result["processor"]})
    processor: list[list[str | float | None]]
    processor = [[name, spread([result["processor"].get(name, 0.0) for result in results])["median"]] for name in names]
    processor.append(["all", spread([sum(result["processor"].values()) for result in results])["median"]])
    tables = [
        Table("Seconds", ["", "median", "minimum", "maximum", "runs"], rows),
        Table("Processor seconds until ready, median", ["process", "seconds"], processor),
    ]
    record("start", "Start and stop", tables, aims, NOTES, results, options.fast, options.out)


if __name__ == "__main__":
    main()
