"""Conversion: folders that lack something, that hold somebody else's files, and that a disk has no room for."""

import fcntl
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoints import copy
from videollama_converters.convert import convert
from videollama_core.checkpoint.tokenizer_files import copy_tokenizer
from videollama_core.protocol.errors import ArtifactMismatch, CheckpointMismatch

SMALL = "mistral-clip-8f"


@pytest.mark.parametrize("left", [(), ("vocab.json",), ("merges.txt",)])
def test_a_checkpoint_without_a_vocabulary_is_refused(left, tmp_path):
    """Out of tokenizer_config.json alone, transformers makes a tokenizer of three special tokens."""
    source = copy(SMALL, tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer.model"):
        (source / name).unlink()
    for name in left:
        (source / name).write_text("{}")
    with pytest.raises(CheckpointMismatch, match=r"nor tokenizer\.model, nor vocab\.json with merges\.txt"):
        copy_tokenizer(source, tmp_path)


@pytest.mark.parametrize("name", ["llm", "model_repository"])
def test_what_no_conversion_wrote_is_not_replaced(name, tmp_path):
    """As with --out build for a checkpoint in build/llm, or --out . in this source tree."""
    source = copy(SMALL, tmp_path / "source").rename(tmp_path / name)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactMismatch, match=f"holds {name}, which a conversion would replace"):
        convert(source, tmp_path, tmp_path / "source/towers/clip-vit-tiny-patch14-56")
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("engine", ["onnx", "torch"])  # the first file is a graph, and one of safetensors
def test_a_disk_without_room_is_named(engine, tmp_path):
    """A limit on the size of a file stands for the disk: the system's error names no file either."""
    limit = (100 * 1024, 100 * 1024)
    command = [sys.executable, "-m", "videollama_client", "convert", str(copy(SMALL, tmp_path)), "--engine", engine]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"vl2: {tmp_path / 'out'}: ")
    assert "File too large" in done.stderr and "Traceback" not in done.stderr


def test_a_stopped_demo_leaves_no_conversion_behind(tmp_path):
    lock = tmp_path / "out" / ".lock"
    demo = subprocess.Popen(
        [sys.executable, "-m", "videollama_client", "demo", "--out", str(lock.parent)], stdout=subprocess.DEVNULL
    )
    while not lock.exists():
        assert demo.poll() is None
        time.sleep(0.01)
    demo.terminate()
    assert demo.wait(60) == 143
    with Path(lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while a conversion holds it
