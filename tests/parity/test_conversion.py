"""Conversion: other shapes, broken checkpoints, killed and repeated runs, and what `llm/` is worth to others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from checkpoints import copy, edit_json, edit_tensors, random_checkpoint
from conftest import checkpoint, golden
from videollama_converters.convert import convert
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.errors import ArtifactMismatch, CheckpointMismatch, ParityFailed
from videollama_core.text import Tokenizer

SMALL = "mistral-clip-8f"  # a single file, quick to edit

ONE_LAYER = {"num_hidden_layers": 1}  # where the decoder is another than the golden variant's, which has more of them
# Name -> golden variant whose folder is changed, and the changes.
SHAPES = {
    "one frame, odd grid, one key head": ("mistral-clip-8f", {"num_frames": 1, "num_key_value_heads": 1} | ONE_LAYER, {"image_size": 42}, {"size": 42, "crop_size": 42}),
    "odd frame count": ("mistral-clip-8f", {"num_frames": 5}, {}, {}),
    "image not divided by the patch": ("qwen2-siglip-16f", {"num_frames": 3}, {"image_size": 75}, {"size": {"height": 75, "width": 75}}),
    "tied embeddings": ("qwen2-clip-8f", {"tie_word_embeddings": True} | ONE_LAYER, {}, {}),
    "own head width": ("qwen2-clip-8f", {"head_dim": 10} | ONE_LAYER, {}, {}),
    "every head its own keys": ("mixtral-clip-8f", {"num_key_value_heads": 4, "num_local_experts": 3} | ONE_LAYER, {}, {}),
    "select the last layer": ("qwen2-siglip-16f", {"mm_vision_select_layer": -1}, {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_convert_and_agree(shape, tmp_path):
    """The graphs of each shape give the PyTorch module's tokens and scores, for a video and for an image."""
    variant, config, tower, pixels = SHAPES[shape]
    source = random_checkpoint(variant, tmp_path / "source", tower, pixels, **config)
    bundle = Bundle.open(convert(source, tmp_path / "out"))
    oracle, encoder = Pipeline(source), MediaEncoder(bundle)
    size, rng = bundle.config.pixels.size, np.random.default_rng(0)
    for count in (bundle.config.num_frames, 1):
        frames = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        with torch.inference_mode():
            wanted = oracle.encode_frames(frames)
        tokens = encoder.encode(frames)
        assert tokens.shape == (bundle.config.media_tokens, bundle.config.language.width)
        assert np.abs(tokens - wanted.numpy()).max() < 1e-4
    prompt = oracle.prompt([{"role": "user", "content": "What is it?"}], "video", len(tokens))
    with torch.inference_mode():
        scores = next(oracle.logits(prompt, torch.from_numpy(tokens)))
    runner = OnnxRunner(bundle, 1, 4096)
    ids = prompt.input_ids.astype(np.int64)
    assert np.abs(runner.prefill(0, ids, tokens, ids != oracle.tokenizer.pad_id) - scores).max() < 5e-4


def drop(name):
    return lambda tensors: tensors.pop(name)


def reshape(tensors):
    tensors["model.mm_projector.readout.0.weight"] = tensors["model.mm_projector.readout.0.weight"][:, :-1].contiguous()


def add(tensors):
    tensors["model.layers.9.mystery.weight"] = torch.zeros(2)


def spoil(tensors):
    tensors["model.norm.weight"][0] = float("nan")


BROKEN = {
    "missing in the decoder": (drop("model.layers.2.mlp.up_proj.weight"), "lacks 1 tensors: model.layers.2.mlp.up_proj.weight"),
    "missing in the connector": (drop("model.mm_projector.s1.b1.se.fc1.bias"), "connector lacks 1 tensors: s1.b1.se.fc1.bias"),
    "missing in the tower": (drop("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"), "vision tower lacks 1"),
    "left over": (add, r"no part of the model uses: model\.layers\.9\.mystery\.weight"),
    "misshapen": (reshape, r"readout\.0\.weight is \[64, 63\]; the config expects \[64, 64\]"),
    "not finite": (spoil, r"model\.norm\.weight contains values that are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_refused_by_name(fault, tmp_path):
    change, reason = BROKEN[fault]
    source = copy(SMALL, tmp_path / "source")
    edit_tensors(source, change)
    with pytest.raises(CheckpointMismatch, match=reason):
        convert(source, tmp_path / "out")
    with pytest.raises(ArtifactMismatch):
        Bundle.open(tmp_path / "out")


CONFIG_FAULTS = {
    "text model": ({"mm_vision_tower": None}, "names no mm_vision_tower"),
    "foreign family": ({"model_type": "llama"}, "model_type 'llama'; expected one of"),
    "foreign connector": ({"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type is 'mlp2x_gelu'"),
    "lost tower": ({"mm_vision_tower": "somewhere/else"}, "--tower"),
    "other width": ({"mm_hidden_size": 32}, "tower is 48 wide"),
    "no size": ({"hidden_size": None}, "lacks 'hidden_size'"),
    "no frames": ({"num_frames": 0}, "num_frames of the checkpoint is 0"),
    "uneven heads": ({"num_key_value_heads": 3}, "cannot share"),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_wrong_config_is_refused_with_the_reason(fault, tmp_path):
    changes, reason = CONFIG_FAULTS[fault]
    source = copy(SMALL, tmp_path / "source")
    edit_json(source / "config.json", **changes)
    with pytest.raises(CheckpointMismatch, match=reason):
        convert(source, tmp_path / "out")


def test_missing_or_invalid_files_are_refused(tmp_path):
    source = copy("mistral-clip-16f", tmp_path / "shards")
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match="lacks 1 shards"):
        convert(source, tmp_path / "out")
    source = copy(SMALL, tmp_path / "cut")
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointMismatch, match="cannot be read"):
        convert(source, tmp_path / "out")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match="has neither model.safetensors"):
        convert(source, tmp_path / "out")
    source = copy(SMALL, tmp_path / "untemplated")
    (source / "config.json").write_text("{broken")
    with pytest.raises(CheckpointMismatch, match="cannot be read as JSON"):
        convert(source, tmp_path / "out")


def to_pickle(source) -> None:
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()


def test_pickled_weights_are_read_without_running_them(tmp_path):
    source = copy(SMALL, tmp_path / "source")
    to_pickle(source)
    pipeline = Pipeline(source)
    case = golden(SMALL)["cases"][2]
    answer = pipeline.answer([{"role": "user", "content": case["instruct"]}])
    assert answer.output_ids[: len(case["output_ids"])] == case["output_ids"]
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    torch.save({"model.norm.weight": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(CheckpointMismatch):
        convert(source, tmp_path / "out")
    assert not mark.exists()


def test_tower_weights_come_from_its_folder_where_the_checkpoint_lacks_them(tmp_path):
    source = copy(SMALL, tmp_path / "source")
    prefix = "model.vision_tower.vision_tower."
    moved = {}

    def move(tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            moved[name.removeprefix(prefix)] = tensors.pop(name)

    edit_tensors(source, move)
    with pytest.raises(CheckpointMismatch, match="--tower|has neither model"):
        convert(source, tmp_path / "out")
    from safetensors.torch import save_file

    tower = tmp_path / "elsewhere"
    shutil.move(next((tmp_path / "source" / "towers").iterdir()), tower)
    save_file({**moved, "text_model.unused": torch.zeros(2)}, tower / "model.safetensors")
    Bundle.open(convert(source, tmp_path / "out", tower=tower))


@pytest.mark.parametrize("variant", ["mistral-clip-8f", "qwen2-clip-8f"])
def test_tokenizer_json_is_made_where_it_is_missing(variant, tmp_path):
    """From tokenizer.model, or vocab.json and merges.txt: the same ids on every recorded prompt."""
    source = copy(variant, tmp_path / "source")
    (source / "tokenizer.json").unlink()
    bundle = Bundle.open(convert(source, tmp_path / "out"))
    made, original = bundle.tokenizer(), Tokenizer(checkpoint(variant))
    for entry in golden(variant)["tokenization"]:
        for piece in entry["prompt"].split(entry["placeholder"]) if entry["placeholder"] else [entry["prompt"]]:
            assert made.encode(piece) == original.encode(piece), piece


@pytest.mark.parametrize("variant", ["mixtral-clip-8f", "qwen2-siglip-16f"])
def test_transformers_reads_llm_and_agrees(variant, bundle_of):
    """`llm/` is a plain Hugging Face directory: another engine computes the same scores from it."""
    from transformers import AutoModelForCausalLM

    bundle = Bundle.open(bundle_of(variant))
    theirs = AutoModelForCausalLM.from_pretrained(
        bundle.language_folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids = np.array([5, 17, 301, 44, 8], np.int64)
    with torch.inference_mode():
        wanted = theirs(torch.from_numpy(ids)[None]).logits[0, -1].numpy()
    scores = OnnxRunner(bundle, 1, 64).prefill(0, ids, None, np.ones(5, bool))
    assert np.abs(scores - wanted).max() < 5e-4
    config = json.loads((bundle.language_folder / "config.json").read_text())
    assert not [key for key in config if key.startswith("mm_") or key == "num_frames"]


def run_convert(source, out) -> subprocess.Popen:
    command = [sys.executable, "-m", "videollama_client", "convert", str(source), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_run_repeats_only_invalid_steps(tmp_path):
    out, source = tmp_path / "out", checkpoint(SMALL)
    convert(source, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.onnx*")}
    process = run_convert(source, out)
    stderr = process.communicate()[1]
    assert process.returncode == 0 and stderr.count("still valid") == 7
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.onnx*")} == before
    damaged = out / "onnx" / "connector.onnx.data"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    process = run_convert(source, out)
    assert process.communicate()[1].count("still valid") == 6
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == {
        damaged,
        out / "onnx" / "connector.onnx",
    }
    Bundle.open(out)


def test_a_killed_conversion_never_looks_whole(tmp_path):
    """Killed in its first step, then in its second; each time the folder is refused, and in the end a plain run completes it."""
    out = tmp_path / "out"
    state = out / ".steps.json"
    for done in (0, 1):
        process = run_convert(checkpoint(SMALL), out)
        while not (out / ".partial").exists() or len(json.loads(state.read_text())) < done:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(ArtifactMismatch):
            Bundle.open(out)
    Bundle.open(convert(checkpoint(SMALL), out))
    assert not (out / ".partial").exists()


def test_two_conversions_do_not_write_one_folder(tmp_path):
    first = run_convert(checkpoint(SMALL), tmp_path / "out")
    while not (tmp_path / "out" / ".partial").exists():
        assert first.poll() is None
        time.sleep(0.01)
    with pytest.raises(ArtifactMismatch, match="another conversion"):
        convert(checkpoint(SMALL), tmp_path / "out")
    first.kill()
    first.communicate()


def test_a_graph_that_disagrees_is_refused(tmp_path, monkeypatch):
    """The parity check must be able to fail: one weight of the graph is changed behind its back."""
    from videollama_converters.export import compare

    original = compare.fill

    def change(module, sources, part):
        filled = original(module, sources, part)
        if part == "connector":
            filled.readout[2].bias += 1
        return filled

    monkeypatch.setattr(compare, "fill", change)
    with pytest.raises(ParityFailed, match="connector"):
        convert(checkpoint(SMALL), tmp_path / "out")
    with pytest.raises(ArtifactMismatch):
        Bundle.open(tmp_path / "out")


def test_a_damaged_bundle_is_not_opened(tmp_path, bundle_of):
    out = tmp_path / "bundle"
    shutil.copytree(bundle_of(SMALL), out)
    Bundle.open(out)
    path = out / "onnx" / "decoder.onnx.data"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ArtifactMismatch, match=r"decoder\.onnx\.data has"):
        Bundle.open(out)
    path.unlink()
    with pytest.raises(ArtifactMismatch, match=r"decoder\.onnx\.data is missing"):
        Bundle.open(out)
    (out / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactMismatch, match="damaged"):
        Bundle.open(out)
