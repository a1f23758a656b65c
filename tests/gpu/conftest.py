"""Needs a GPU: the tree and the pinned packages, nothing downloaded. Each part writes build/gpu/PART.json and .md.

VL2_GPU_DEVICE=cpu rehearses what can be without one: the same tests on the CPU, whose results say so.
"""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

ON_CPU = os.environ.get("VL2_GPU_DEVICE") == "cpu"
_rows: list[dict[str, object]] = []


def pytest_collection_modifyitems() -> None:
    if not torch.cuda.is_available() and not ON_CPU:
        pytest.exit(
            "no GPU can be used here (torch.cuda.is_available() is false): run make test-gpu on a machine with an NVIDIA GPU "
            "and a CUDA build of PyTorch",
            1,
        )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        name = report.nodeid.partition("::")[2]
        _rows.append({"test": name, "outcome": report.outcome, "seconds": round(report.duration, 1)})


def pytest_sessionfinish() -> None:
    part = os.environ.get("VL2_GPU_PART")
    if not part or not _rows:
        return
    machine = {
        "card": "none: a rehearsal on the CPU" if ON_CPU else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    folder = Path(__file__).parents[2] / "build/gpu"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}.json").write_text(
        json.dumps({"part": part, "machine": machine, "tests": _rows}, indent=1) + "\n"
    )
    lines = [f"{part}: {', '.join(f'{key} {value}' for key, value in machine.items())}", "", "| test | outcome | s |"]
    lines += ["|---|---|---|", *(f"| {row['test']} | {row['outcome']} | {row['seconds']} |" for row in _rows)]
    (folder / f"{part}.md").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if ON_CPU else "cuda")
