"""From `vl2 serve` to ready, and from SIGTERM to its end, with one question answered between."""

import time
from pathlib import Path
from typing import Any

from videollama_benchmarks.overhead.served import converted_demo, serving
from videollama_benchmarks.recording import TREE, Aim, Table, arguments, record, spread
from videollama_client import Client

CLIP = TREE / "benchmarks/shapes/held_out/00000.mp4"
READY_SECONDS, STOP_SECONDS = 3.0, 2.0
NOTES = (
    "The demo's bundle (tiny-shapes), files in the page cache. Ready is the line `ready:`, after which a question about a clip is "
    "answered; processor time is that of all processes of the server until then.",
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
    asked = parser.parse_args()
    bundle = converted_demo()
    run(bundle)  # reads the files, writes the bytecode
    found = [run(bundle) for _ in range(2 if asked.fast else 9)]
    rows: list[list[str | float | None]] = []
    aims = []
    for name, words, most in (("ready", "start to ready", READY_SECONDS), ("stop", "SIGTERM to the end", STOP_SECONDS)):
        taken = spread([one[name] for one in found])
        rows.append([words, *(taken[part] for part in ("median", "least", "most", "runs"))])
        aims.append(Aim(f"seconds from {words}, median", taken["median"], most))
    names = sorted({name for one in found for name in one["processor"]})
    processor: list[list[str | float | None]]
    processor = [[name, spread([one["processor"].get(name, 0.0) for one in found])["median"]] for name in names]
    processor.append(["all", spread([sum(one["processor"].values()) for one in found])["median"]])
    tables = [
        Table("Seconds", ["", "median", "least", "most", "runs"], rows),
        Table("Processor seconds until ready, median", ["process", "seconds"], processor),
    ]
    record("start", "Start and stop", tables, aims, NOTES, found, asked.fast, asked.out)


if __name__ == "__main__":
    main()
