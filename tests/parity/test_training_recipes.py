"""The recipes as they are, on data in the published layouts: what they train is read back, converts and answers."""

import json
import os
import shutil
import subprocess

import pytest
from click.testing import CliRunner

from conftest import ROOT, checkpoint
from training_data import (
    CLIP_WITH_SOUND,
    CLIPS,
    PICTURES,
    SOUND,
    answers,
    audio_stages,
    converts_and_answers,
    custom_sft,
    plain_language_model,
    split_audio,
    videollava_pt,
    videollava_sft,
    vision_tower,
)
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_training.cli import train as command

RECIPES = ROOT / "training" / "recipes"
# Run -> recipe, layout of the data, layout that is written, and what is asked about.
RUNS = {
    "pretrain": ("pretrain", "videollava_pt", "base", "video", CLIPS[0]),
    "finetune": ("finetune", "videollava_sft", "chat", "image", PICTURES[0]),
    "custom": ("finetune", "custom_sft", "chat", "video", CLIPS[0]),
    "lora": ("finetune_lora", "videollava_sft", "lora", "video", CLIPS[1]),
    "qlora": ("finetune_qlora", "custom_sft", "lora", "image", PICTURES[1]),
    "audio 1": ("audio_stage1", "audio_stage1", "chat", "audio", SOUND),
    "audio 2": ("audio_stage2", "audio_stage2", "chat", "audio", SOUND),
    "audio 3": ("audio_stage3", "audio_stage3", "chat", "video_with_audio", CLIP_WITH_SOUND),
}
START = {"custom": "pretrain", "finetune": "pretrain", "lora": "pretrain", "qlora": "pretrain"}
START |= {"audio 2": "audio 1", "audio 3": "audio 2"}
SMALL = ("--lora-rank", "2", "--lora-alpha", "4", "--workers", "0", "--warmup", "0", "--max-steps", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The data sets, a plain language model with a vision tower, and a checkpoint without audio with BEATs' file."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, make in (
        ("videollava_pt", videollava_pt),
        ("videollava_sft", videollava_sft),
        ("custom_sft", custom_sft),
    ):
        make(folder / name)
    for stage in ("audio_stage1", "audio_stage2", "audio_stage3"):
        audio_stages(folder / stage)
    plain_language_model("qwen2-siglip-16f", folder / "language")
    vision_tower("qwen2-siglip-16f", folder / "siglip")
    split_audio(folder / "av")
    return folder


def arguments(world, run):
    """What the recipe's shell script hands to `vl2 train`."""
    recipe, layout, *_ = RUNS[run]
    start = world / f"run {START[run]}" / "checkpoint" if run in START else world / "av/checkpoint"
    environment = {
        "DATA": world / layout,
        "LAYOUT": layout,
        "OUT": world / f"run {run}",
        "CHECKPOINT": start,
        "BASE": "" if run in START else world / "language",
        "TOWER": "" if run != "pretrain" else world / "siglip",
        "BEATS": world / "av/BEATs.pt",
        "LAUNCH": "printf %s\\0",
    }
    shell = ["sh", str(RECIPES / f"{recipe}.sh"), *SMALL]
    result = subprocess.run(
        shell, check=True, capture_output=True, text=True, env=os.environ | {k: str(v) for k, v in environment.items()}
    )
    return result.stdout.split("\0")[:-1]


def trained(world, run):
    """The checkpoint of a run, which is made once, after the one that it starts from."""
    written = world / f"run {run}" / "checkpoint"
    if not written.is_dir():
        if run in START:
            trained(world, START[run])
        result = CliRunner().invoke(command, arguments(world, run), catch_exceptions=False)
        assert result.exit_code == 0
    return written


@pytest.mark.parametrize("run", RUNS)
def test_each_recipe_trains_what_answers(world, run):
    _, _, layout, kind, medium = RUNS[run]
    written = trained(world, run)
    parts = open_checkpoint(written)
    assert parts.folders.layout == layout
    parts.check()
    assert answers(written, kind, medium)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_what_each_recipe_trains_converts_and_is_served_alike(world, run, tmp_path):
    _, _, _, kind, medium = RUNS[run]
    assert converts_and_answers(trained(world, run), kind, medium, tmp_path / "bundle") is not None


def check(folder, layout, *more):
    out = folder.parent / "never"
    arguments = [str(folder), "--layout", layout, "--checkpoint", str(checkpoint("mistral-clip-8f")), "--out", str(out)]
    result = CliRunner().invoke(command, [*arguments, *more])
    assert not out.exists()
    return result


def test_a_data_folder_is_counted_before_anything_is_loaded(tmp_path):
    folder = videollava_pt(tmp_path / "pt")
    result = check(folder, "videollava_pt", "--check-only")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "4 samples (2 image, 2 video)",
        "  llava_image/: 2 of 2 files",
        "  valley/: 2 of 2 files",
    ]


@pytest.mark.parametrize("more", [(), ("--check-only",)])
def test_what_a_data_folder_lacks_is_said_before_anything_is_loaded(tmp_path, more):
    folder = videollava_sft(tmp_path / "sft")
    (folder / "videochatgpt_tune" / CLIPS[1]).unlink()
    result = check(folder, "videollava_sft", *more)
    assert isinstance(result.exception, BadSample)
    text = str(result.exception)
    assert "5 samples (2 image, 1 text, 2 video)" in text and "  videochatgpt_tune/: 1 of 2 files\n" in text
    assert f"sample 1: {folder}/videochatgpt_tune/{CLIPS[1]} is missing" in text
    shutil.rmtree(folder / "llava_image_tune")
    (folder / "videochatgpt_llavaimage_tune.json").rename(folder / "tune.json")
    result = check(folder, "videollava_sft", *more)
    assert isinstance(result.exception, BadSample)
    assert "lacks videochatgpt_llavaimage_tune.json, llava_image_tune/; it has tune.json" in str(result.exception)
    assert isinstance(check(folder / "none", "videollava_sft").exception, BadSample)
    assert isinstance(check(folder, "videollava").exception, InvalidRequest)


def test_many_missing_files_are_counted_and_some_are_named(tmp_path):
    folder = custom_sft(tmp_path / "custom")
    samples = [{"id": n, "video": f"videos/{n}.mp4", "conversations": []} for n in range(12)]
    (folder / "custom.json").write_text(json.dumps(samples))
    text = str(check(folder, "custom_sft", "--check-only").exception)
    assert "  videos/: 0 of 12 files" in text and "videos/4.mp4 is missing\n    and 7 more" in text


def test_recipes_start_as_many_processes_as_there_are_gpus(tmp_path):
    """With a made nvidia-smi and torchrun: DeepSpeed where there are several, plain `vl2 train` else."""
    for name, text in (
        ("nvidia-smi", 'echo "GPU 0: a"; echo "GPU 1: a"'),
        ("torchrun", 'echo "$@"'),
        ("vl2", 'echo "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def said(**more):
        shell = ["sh", str(RECIPES / "finetune_qlora.sh"), "--epochs", "2"]
        return subprocess.run(shell, check=True, capture_output=True, text=True, env=environment | more).stdout.split()

    two = said()
    assert two[:5] == ["--nproc-per-node", "2", "-m", "videollama_client", "train"]
    assert two[two.index("--deepspeed") + 1].endswith("configs/zero2.json")
    assert two[-2:] == ["--epochs", "2"]
    one = said(PROCESSES="1")
    assert one[0] == "train" and "--deepspeed" not in one
