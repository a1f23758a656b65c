"""Measures the PyTorch engine at real size with random weights: `make test-gpu PART=speed` writes build/gpu/performance.json and .md.

A rehearsal on the CPU measures a tiny model in its place.
"""

import json

from conftest import checkpoint
from gpu.conftest import RESULTS
from gpu.measure import as_table, measure
from videollama_core.checkpoint.parts import open_checkpoint


def test_measure(device):
    tiny = open_checkpoint(checkpoint("qwen2-siglip-16f")).config if device.type == "cpu" else None
    results = measure(device, "VideoLLaMA2.1-7B-16F", (1, 8, 64), tiny)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "performance.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (RESULTS / "performance.md").write_text(as_table(results), "utf-8")
    print(as_table(results))
    assert all(row["milliseconds"] > 0 for row in results["stages"])
    assert {row.get("tokens_per_second", 0) > 0 for row in results["stages"][-3:]} == {True}
