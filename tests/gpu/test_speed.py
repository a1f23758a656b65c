"""Measures the PyTorch engine at real size with random weights: `make test-gpu PART=speed` writes build/gpu/performance.json and .md."""

from conftest import ROOT
from gpu.measure import as_table, measure


def test_measure(device):
    found = measure(device, "VideoLLaMA2.1-7B-16F", requests=(1, 8, 64))
    folder = ROOT / "build/gpu"
    folder.mkdir(parents=True, exist_ok=True)
    import json

    (folder / "performance.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (folder / "performance.md").write_text(as_table(found), "utf-8")
    print(as_table(found))
    assert all(row["milliseconds"] > 0 for row in found["stages"])
