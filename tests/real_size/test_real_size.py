"""Conversion at the published sizes with random weights: `make test-real-size`, minutes, 8 GB of memory, 16 GB of disk.

Each measurement is a process of its own, so that its peak of memory is its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from videollama_converters.compare import TOLERANCE

MEASURE = Path(__file__).with_name("measure.py")


def measure(*words: object) -> dict:
    done = subprocess.run(
        [sys.executable, MEASURE, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(MEASURE.parents[1])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))
    return found


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
    found = measure("graph", checkpoint, graph, tmp_path)
    assert not found["violations"]
    assert found["difference"] <= TOLERANCE
    assert found["export_peak_gigabytes"] <= found["gigabytes"] + 1.0  # streamed: never the whole model and its file


@pytest.mark.parametrize(
    ("checkpoint", "graph", "fp8"),
    [
        ("VideoLLaMA2-7B", "vision_encoder", ()),
        ("VideoLLaMA2-7B", "vision_encoder", ("fp8",)),
        ("VideoLLaMA2-7B", "connector", ()),
        ("VideoLLaMA2.1-7B-16F", "vision_encoder", ()),
        ("VideoLLaMA2.1-7B-16F", "connector", ()),
        ("VideoLLaMA2.1-7B-AV", "audio_encoder", ()),
    ],
)
def test_engines(checkpoint, graph, fp8, tmp_path):
    """By NVIDIA's builder, on the CPU: attention is one kernel in every layer of each profile, and fp8 is where it was asked."""
    pytest.importorskip("tensorrt_rtx")
    found = measure("build", checkpoint, graph, tmp_path, *fp8)
    assert found["attention"] == [found["layers"]] * len(found["attention"])
    assert found["fp8_products"] == (6 * found["layers"] if fp8 else 0)


def test_a_72b_decoder_is_split_within_a_shard(tmp_path):
    """Three of its eighty layers: memory does not grow with their number, the disk does."""
    found = measure("split", "VideoLLaMA2-72B", 3, tmp_path)
    assert found["shards"] >= 4
    assert found["peak_above_start_gigabytes"] <= found["allowed_gigabytes"]
