"""Conversion at the published sizes with random weights: `make test-real-size`, minutes, 8 GB of memory, 16 GB of disk.

Each measurement is a process of its own, so that its peak of memory is its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from videollama_converters.export.compare import TOLERANCE

MEASURE = Path(__file__).with_name("measure.py")


def measure(*words: object) -> dict:
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}  # conftest.py sets one, for models far smaller
    done = subprocess.run(
        [sys.executable, MEASURE, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | threads | {"PYTHONPATH": str(MEASURE.parents[1])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(figures))
    return figures


@pytest.mark.parametrize(
    ("checkpoint", "graph"),
    [
        ("VideoLLaMA2-7B", "vision_encoder"),  # CLIP-L/336
        ("VideoLLaMA2-7B", "connector"),
        ("VideoLLaMA2.1-7B-16F", "vision_encoder"),  # SigLIP-so400m/384
        ("VideoLLaMA2.1-7B-16F", "connector"),
        ("VideoLLaMA2.1-7B-AV", "audio_encoder"),
    ],
)
def test_graphs(checkpoint, graph, tmp_path):
    result = measure("graph", checkpoint, graph, tmp_path)
    assert not result["violations"]
    assert result["difference"] <= TOLERANCE
    assert result["export_peak_gigabytes"] <= result["gigabytes"] + 1.0  # streamed: never the whole model and its file


@pytest.mark.parametrize(
    ("checkpoint", "graph", "fp8", "scratch_megabytes"),
    [
        ("VideoLLaMA2-7B", "vision_encoder", (), [16.5, 453.8]),
        ("VideoLLaMA2-7B", "vision_encoder", ("fp8",), [18.2, 359.2]),
        ("VideoLLaMA2-7B", "connector", (), [42.5, 1057.0]),
        ("VideoLLaMA2.1-7B-16F", "vision_encoder", (), [19.5, 415.8]),
        ("VideoLLaMA2.1-7B-16F", "connector", (), [47.0, 1170.6]),
        ("VideoLLaMA2.1-7B-AV", "audio_encoder", (), [386.6]),
    ],
)
def test_engines(checkpoint, graph, fp8, scratch_megabytes, tmp_path):
    """By NVIDIA's builder, on the CPU: attention is one kernel in every layer of each profile, fp8 is where it was asked, and each
    profile needs the memory that docs/performance.md states: an image far less than 32 frames."""
    pytest.importorskip("tensorrt_rtx")
    figures = measure("build", checkpoint, graph, tmp_path, *fp8)
    assert figures["attention"] == [figures["layers"]] * len(figures["attention"])
    assert figures["fp8_products"] == (6 * figures["layers"] if fp8 else 0)
    assert figures["scratch_megabytes"] == pytest.approx(scratch_megabytes, rel=0.1)


def test_a_72b_decoder_is_split_within_a_shard(tmp_path):
    """Three of its eighty layers: memory does not grow with their number, the disk does."""
    figures = measure("split", "VideoLLaMA2-72B", 3, tmp_path)
    assert figures["shards"] >= 4
    assert figures["peak_above_start_gigabytes"] <= figures["allowed_gigabytes"]
