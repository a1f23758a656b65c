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
RESULTS = Path(os.environ.get("VL2_GPU_RESULTS") or Path(__file__).parents[2] / "build/gpu")
_rows: list[dict[str, object]] = []


def pytest_collection_modifyitems() -> None:
    if not torch.cuda.is_available() and not ON_CPU:
        pytest.exit(
            "no GPU can be used here (torch.cuda.is_available() is false): run make test-gpu on a machine with an NVIDIA GPU "
            "and a CUDA build of PyTorch",
            1,
        )


def _add(report: pytest.TestReport | pytest.CollectReport, seconds: float) -> None:
    name = report.nodeid.partition("::")[2] or report.nodeid
    row: dict[str, object] = {"test": name, "outcome": report.outcome, "seconds": round(seconds, 1), "reason": ""}
    if isinstance(report.longrepr, tuple):  # of what was skipped: file, line, reason
        row["reason"] = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        row["reason"] = (report.longreprtext.splitlines() or [""])[-1]
    _rows.append(row)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that is skipped as a whole, or cannot be imported, has no tests."""
    if report.outcome != "passed":
        _add(report, 0.0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _add(report, report.duration)


def pytest_sessionfinish(session: pytest.Session) -> None:
    part = os.environ.get("VL2_GPU_PART")
    if not part or not _rows:
        return
    if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:  # all of it was skipped, and the rows say why
        session.exitstatus = pytest.ExitCode.OK
    machine = {
        "card": "none: a rehearsal on the CPU" if ON_CPU else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{part}.json").write_text(
        json.dumps({"part": part, "machine": machine, "tests": _rows}, indent=1) + "\n"
    )
    lines = [f"{part}: {', '.join(f'{key} {value}' for key, value in machine.items())}", ""]
    lines += ["| test | outcome | s | reason |", "|---|---|---|---|"]
    lines += [f"| {row['test']} | {row['outcome']} | {row['seconds']} | {row['reason']} |" for row in _rows]
    (RESULTS / f"{part}.md").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if ON_CPU else "cuda")
