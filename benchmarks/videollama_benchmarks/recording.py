"""Records results of the measuring scripts as JSON with machine, versions and commit, small enough to be tracked in git.

A script (`benchmarks/measure_*.py`) measures its variants in turn, makes tables and aims, and calls `record`;
`performance_page.py` writes all of them into docs/performance.md.
"""

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
TREE = Path(__file__).parents[2]
RESULTS = TREE / "benchmarks/results"  # of complete runs; results of `--fast` go to FAST
FAST = TREE / "build/bench-fast"
PACKAGES = ("av", "nvidia-pytriton", "numpy", "onnxruntime", "pillow", "torch", "tritonclient", "vllm")


@dataclass(frozen=True)
class Table:
    """Cells are strings or numbers; numbers are shown with three digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


@dataclass(frozen=True)
class Aim:
    """A target for a ratio or figure: `measured <= wanted`, or `measured >= wanted` if `at_least`."""

    what: str
    measured: float
    wanted: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


def machine() -> dict[str, Any]:
    """What a figure depends on apart from the script: processor, memory, GPU, versions, and the source tree's commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages / 2**30, 1),
        "gpu": _words("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "python": platform.python_version(),
        "version": importlib.metadata.version("videollama2-service"),
        "versions": versions,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str | None:
    """The source tree's commit, with a + if tracked files differ from it; None outside a repository."""
    commit = _words("git", "-C", str(TREE), "rev-parse", "--short", "HEAD")
    changed = commit and _words("git", "-C", str(TREE), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if changed else commit


def _words(*command: str) -> str | None:
    """A program's output; None if it is missing, fails or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and number of values."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "runs": len(values)}


def in_turn(variants: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, list[float]]]:
    """Run all variants in turn, `runs` times; each round begins with the next variant.

    Returns:
        Variant -> `wall` and `cpu` (of this process and its finished children): seconds of every run.
    """
    names = list(variants)
    taken: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in names}
    for number in range(runs):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            gc.collect()
            wall, cpu = time.perf_counter(), _cpu_seconds()
            variants[name]()
            taken[name]["wall"].append(time.perf_counter() - wall)
            taken[name]["cpu"].append(_cpu_seconds() - cpu)
    return taken


def _cpu_seconds() -> float:
    # os.times counts in ticks of 10 ms, in which a few short steps take none.
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--fast` (a few seconds to a minute, for `make bench-fast`) and `--out`, the folder for the JSON file."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="Measure only a small part, for a quick check.")
    parser.add_argument(
        "--out", type=Path, help=f"Write the JSON file to this folder; the default is {RESULTS}, or {FAST} with --fast."
    )
    return parser


def record(
    name: str,
    title: str,
    tables: Sequence[Table],
    aims: Sequence[Aim] = (),
    notes: Sequence[str] = (),
    samples: Any = None,
    fast: bool = False,
    out: Path | None = None,
) -> Path:
    """Print the result and write it to `OUT/NAME.json`, replacing an earlier result of that name.

    Args:
        notes: paragraphs that a reader needs to understand the tables.
        samples: raw values, serializable as JSON; not shown. Keep them small.
    """
    folder = out or (FAST if fast else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "format": FORMAT,
        "name": name,
        "title": title,
        "command": " ".join(["python", *_relative(sys.argv)]),
        "machine": machine(),
        "notes": list(notes),
        "tables": [asdict(table) for table in tables],
        "aims": [asdict(aim) | {"holds": aim.holds} for aim in aims],
    } | ({} if samples is None else {"samples": samples})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    from videollama_benchmarks.performance_page import result_lines

    print("\n".join(result_lines(result)))
    print(path)
    return path


def _relative(words: Sequence[str]) -> list[str]:
    """The command with paths relative to this source tree."""
    return [word.replace(f"{TREE}/", "") for word in words]
