"""`make test-gpu` without a GPU: its parts, their results, and the packages that are brought to a machine without a network."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from conftest import ROOT

# Imports the parts where only those packages can be found that the machine has, or is brought.
IMPORTS = """if True:
    import sys
    from importlib.metadata import packages_distributions, requires
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    brought, of_the_machine, modules = (words.split(",") for words in sys.argv[1:])
    found, open_ends = {canonicalize_name(name) for name in brought}, list(of_the_machine)
    while open_ends:
        name = canonicalize_name(open_ends.pop())
        if name not in found:
            found.add(name)
            needs = map(Requirement, requires(name) or ())
            open_ends += [each.name for each in needs if not each.marker or each.marker.evaluate({"extra": ""})]
    homes = packages_distributions()

    class Others:
        def find_spec(self, name, path=None, target=None):
            if name in homes and not {canonicalize_name(home) for home in homes[name]} & found:
                raise ModuleNotFoundError(f"no {name} on a GPU machine", name=name)

    sys.meta_path.insert(0, Others())
    for module in modules:
        __import__(module)
"""


def requirements() -> list[Requirement]:
    lines = (ROOT / "scripts/gpu_requirements.txt").read_text("utf-8").splitlines()
    return [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]


def test_every_file_is_a_part():
    """test_tensorrt_rtx.py belonged to none."""
    script = (ROOT / "scripts/test_gpu.sh").read_text("utf-8")
    (parts,) = re.findall(r'all\) parts="([^"]+)"', script)
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests/gpu").glob("test_*.py")}
    assert set(parts.split()) == files
    assert f"{' | '.join(parts.split())}) parts=$1" in script and f"one of {', '.join(parts.split())}, or" in script


def rehearse(part, folder):
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/gpu/test_{part}.py"]
    more = {"VL2_GPU_DEVICE": "cpu", "VL2_GPU_PART": part, "VL2_GPU_RESULTS": str(folder)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ | more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return json.loads((folder / f"{part}.json").read_text("utf-8"))


def test_a_part_that_cannot_run_records_the_reason(tmp_path):
    """It ended with pytest's exit code for no tests, and wrote nothing."""
    pytest.importorskip("torch")
    results = rehearse("tensorrt", tmp_path)
    assert [(row["outcome"], row["reason"][:9]) for row in results["tests"]] == [("skipped", "TensorRT ")]
    assert results["machine"]["card"] == "none: a rehearsal on the CPU"
    assert "in the pinned container" in (tmp_path / "tensorrt.md").read_text("utf-8")


def test_the_measurements_can_be_rehearsed(tmp_path):
    """They asked the GPU for its name first."""
    pytest.importorskip("torch")
    assert [row["outcome"] for row in rehearse("speed", tmp_path)["tests"]] == ["passed"]
    performance = json.loads((tmp_path / "performance.json").read_text("utf-8"))
    assert (
        performance["checkpoint"].startswith("a tiny model")
        and performance["reached"].keys() == performance["peaks"].keys()
    )
    stages = [row["stage"] for row in performance["stages"]]
    assert stages[-3:] == [f"decoding step, {rows} at a time" for rows in (1, 8, 64)]
    assert all(stage in (tmp_path / "performance.md").read_text("utf-8") for stage in stages)


def test_every_imported_package_is_brought_to_a_machine_without_a_network():
    """soundfile was missing, so that no part could be collected."""
    pytest.importorskip("torch")
    brought = ",".join([*(each.name for each in requirements()), "videollama2-service"])
    words = [brought, "torch,transformers,onnx,onnxruntime", "conftest,gpu.test_correct,gpu.test_speed,gpu.test_nvdec"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "VL2_GPU_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_brought_versions_are_those_tested_here():
    """The newest PyAV was not: it cannot open files the way this project does."""
    assert (
        "-c constraints.txt" in (ROOT / "Makefile").read_text("utf-8").partition("gpu-wheels:")[2].partition("\n\n")[0]
    )
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {Requirement(line).name.lower(): line for line in lines if line and not line.startswith("#")}
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    ours = {each.name: each for words in optional.values() for each in map(Requirement, words)}
    for each in requirements():
        (version,) = (one.version for one in Requirement(pinned[each.name.lower()]).specifier)
        assert each.specifier.contains(version), each
        if each.name in ("av", "soundfile", "onnx-ir", "onnxscript", "pillow"):
            assert each.specifier == ours[each.name].specifier, each
