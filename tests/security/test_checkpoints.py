"""Hostile checkpoints: each is refused in one line, within limits of time and memory, with nothing written or read outside."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from conftest import checkpoint
from security.hostile_checkpoints import CONFIGS, FILES, VALUES
from security.hostile_prompts import LIMITED, PROMPTS
from security.hostile_weights import WEIGHTS
from videollama_converters.tokenizer_check import check_tokenizer, prove
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.engines.bundle import FORMAT, Bundle
from videollama_core.protocol.errors import ArtifactMismatch, CheckpointMismatch, VideoLlamaError

AREA = "checkpoints"
SECONDS, MEGABYTES = 10.0, 1024  # of one case: the processor's time, memory above the start
VARIANT = "qwen2-clip-8f"
# Through the real command: by name, the rest of it is the same for all.
COMMANDS = ("tokenizer.model is a link to /etc/passwd", ".bin: 4 bytes expand to 16 GB", LIMITED[0].name)
ALL = {case.name: case for case in (*VALUES, *CONFIGS, *FILES, *WEIGHTS, *PROMPTS, *LIMITED)}


@pytest.fixture(scope="module")
def seen(case_table):
    """Row of the table -> its answer and the most that one of its cases took."""
    rows = {}
    yield rows
    for row, (answer, seconds, megabytes) in rows.items():
        case_table.add(row, answer, seconds, megabytes)


def cpu_seconds():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def memory(name):
    """VmRSS or VmHWM of this process in MB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def refused(act, reason, row, seen):
    """The refusal of `act`, checked to be one line, within time and memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    start, before = cpu_seconds(), memory("VmRSS")
    with pytest.raises(VideoLlamaError, match=reason) as caught:
        act()
    seconds, megabytes = cpu_seconds() - start, memory("VmHWM") - before
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1500, text[:2000]
    text.encode("utf-8")
    assert seconds < SECONDS and megabytes < MEGABYTES, (seconds, megabytes)
    _, most_seconds, most_megabytes = seen.get(row, ("", 0.0, 0.0))
    seen[row] = (caught.value.kind, max(seconds, most_seconds), max(megabytes, most_megabytes))
    return caught.value


@cache
def language(variant):
    return read_model_config(checkpoint(variant))


@pytest.mark.parametrize("case", [*VALUES, *CONFIGS, *WEIGHTS], ids=lambda case: case.name)
def test_a_hostile_checkpoint_is_refused_before_anything_is_written(case, tmp_path, seen):
    """The checks of `vl2 convert` before it makes a folder, except those in the tokenizer's process."""
    source = case.make(tmp_path)
    refused(lambda: open_checkpoint(source).check(), case.reason, case.row or case.name, seen)


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_files_outside_the_folder_are_not_read(case, tmp_path, seen):
    source = case.make(tmp_path)

    def act():
        parts = open_checkpoint(source)
        parts.check()
        (tmp_path / "llm").mkdir()
        prove(parts.folders.language, tmp_path / "llm", "mistral", 1000, 8)

    refused(act, case.reason, case.name, seen)


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case.name)
def test_a_hostile_tokenizer_or_template_is_refused(case, tmp_path, seen):
    """The checks in the process of a conversion; none of these cases needs that process's limits."""
    source = case.make(tmp_path)
    config = language(case.variant)
    (tmp_path / "llm").mkdir()
    sizes = (config.language.family, config.language.vocab_size, config.media_tokens)
    refused(lambda: prove(source, tmp_path / "llm", *sizes), case.reason, case.name, seen)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_ends_with_one_line_and_leaves_nothing(name, tmp_path, case_table):
    case = ALL[name]
    source, out = case.make(tmp_path), tmp_path / "out"
    before = cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "videollama_client", "convert", str(source), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vl2: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(case.reason, line) and line.startswith("vl2: CheckpointMismatch: "), line
    assert not out.exists()
    case_table.add(f"`vl2 convert`: {name}", "CheckpointMismatch, exit code 1", cpu_seconds() - before)


def test_links_of_the_hub_cache_are_followed(tmp_path):
    """Every file of a snapshot is a link to a blob of its repository; a link to another repository's blob is not
    followed.
    """
    source, repository = checkpoint(VARIANT), tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copyfile(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    opened = open_checkpoint(snapshot, next((source.parent / "towers").iterdir()))
    opened.check()
    check_tokenizer(opened.folders.language, opened.config)
    (snapshot / "config.json").unlink()
    (tmp_path / "models--c--d" / "blobs").mkdir(parents=True)
    shutil.copyfile(source / "config.json", tmp_path / "models--c--d" / "blobs" / "0")
    (snapshot / "config.json").symlink_to("../../../models--c--d/blobs/0")
    with pytest.raises(CheckpointMismatch, match="leads out of the folder"):
        open_checkpoint(snapshot)


def bundle(folder, **changes):
    """A bundle as far as its manifest goes."""
    model = read_model_config(checkpoint(VARIANT)).to_dict()
    content = {
        "format": FORMAT,
        "model": model,
        "engine": "onnx",
        "dtype": "float32",
        "max_seq_len": 32768,
        "files": {},
    }
    folder.mkdir()
    for key, value in changes.items():
        part, _, name = key.partition("__")
        (content[part] if name else content).update({name or part: value})
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


BUNDLES = {
    "a file that is not there": {"files": {"onnx/a.onnx": {"bytes": 7}}},
    "a file outside": {"files": {"../outside": {"bytes": 7}}},
    "an absolute path": {"files": {"/etc/passwd": {"bytes": 7}}},
    "files are a list": {"files": ["a"]},
    "sizes are text": {"files": {"a": {"bytes": "many"}}},
    "no model": {"model": None},
    "a model of text": {"model__language": "x"},
    "a vision tower of width 2^63": {"model__vision": {"width": 2**63}},
    "a connector that is not known": {"model__connector": "linear"},
    "num_frames is 10^9": {"model__num_frames": 10**9},
    "max_seq_len is text": {"max_seq_len": "1"},
    "max_seq_len is 0": {"max_seq_len": 0},
    "engine is a list": {"engine": ["onnx"]},
    "engine is not known": {"engine": "x"},
    "another format": {"format": 99},
    "world_size is -1": {"world_size": -1},
}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_false_manifest_is_refused(name, tmp_path, seen):
    root = bundle(tmp_path / "bundle", **BUNDLES[name])
    error = refused(lambda: Bundle.open(root), "convert again|whole", f"bundle: {name}", seen)
    assert isinstance(error, ArtifactMismatch)


def test_an_invalid_manifest_is_refused(tmp_path, seen):
    root = bundle(tmp_path / "bundle")
    Bundle.open(root)
    path = root / "manifest.json"
    path.write_text("[" * 100_000)
    refused(lambda: Bundle.open(root), "damaged", "bundle: manifest nested 100,000 deep", seen)
    os.truncate(path, 2**40)
    refused(lambda: Bundle.open(root), "damaged", "bundle: manifest of 1 TB", seen)
    path.unlink()
    os.mkfifo(path)
    refused(lambda: Bundle.open(root), "no manifest.json", "bundle: manifest is a pipe", seen)


def test_serve_reports_an_invalid_bundle_in_one_line(tmp_path):
    root = bundle(tmp_path / "bundle", model__num_frames=10**9)
    done = subprocess.run(
        [sys.executable, "-m", "videollama_client", "serve", str(root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith("vl2: ArtifactMismatch: ")
    assert len(done.stderr.splitlines()) == 1 and "num_frames" in done.stderr
