"""Where a run starts: parts that were never together, joined by fresh weights; and what is trained of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import checkpoint
from training_data import (
    CLIPS,
    SOUND,
    answers,
    audio_stages,
    custom_sft,
    plain_language_model,
    split_audio,
    videollava_pt,
    vision_tower,
)
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.protocol.errors import CheckpointMismatch, InvalidRequest
from videollama_core.text import Tokenizer
from videollama_training.options import TrainingOptions
from videollama_training.start import open_start, read_audio_tower
from videollama_training.train import prepare_model, train

PARTS = {
    "mistral-clip-8f-base": ("stc_connector", 8),
    "mixtral-clip-8f": ("stc_connector", 8),
    "qwen2-siglip-16f": ("stc_connector_v35", 16),
}


def settings(folder: Path, **changes):
    given = {"data": (folder / "data",), "out": folder / "run", "max_steps": 2, "batch_size": 4, "log_steps": 1}
    return TrainingOptions(**{**given, **changes})


def plain_parts(variant: str, folder: Path):
    kind, frames = PARTS[variant]
    return {
        "base": plain_language_model(variant, folder / "language"),
        "tower": vision_tower(variant, folder / f"tower-{'siglip' if 'siglip' in variant else 'clip'}"),
        "connector": kind,
        "num_frames": frames,
    }


@pytest.mark.parametrize("variant", PARTS)
def test_pretraining_joins_a_plain_language_model_and_a_tower(variant, tmp_path):
    """The Base folder holds a connector that was trained; tower and language model are the given ones."""
    given = plain_parts(variant, tmp_path)
    videollava_pt(tmp_path / "data")
    options = settings(tmp_path, **given, layout="videollava_pt", tune="connector")
    start = open_start(options)
    start.check()
    written = train(options).checkpoint
    content = json.loads((written / "config.json").read_text())
    assert content["model_type"] == f"videollama2_{variant.split('-')[0]}"
    assert (content["mm_projector_type"], content["num_frames"]) == PARTS[variant]
    assert sorted(path.name for path in written.iterdir()) == ["config.json", "mm_projector.bin"]
    parts = open_checkpoint(written)
    parts.check()
    for name in parts.names():
        moved = not torch.equal(parts.read(name).float(), start.read(name).to(torch.bfloat16).float())
        assert not moved or name.startswith("model.mm_projector."), name
    assert not torch.equal(
        parts.read("model.mm_projector.readout.2.weight"), start.read("model.mm_projector.readout.2.weight")
    )
    assert answers(written, "video", CLIPS[0])


def test_a_fresh_connector_has_pytorchs_default_weights_of_its_seed_alone(tmp_path):
    """As in the reference: uniform within the root of 1 / inputs, norms of 1; whatever was drawn before."""
    options = settings(tmp_path, **plain_parts("mistral-clip-8f-base", tmp_path))
    first = open_start(options)
    torch.rand(7)
    again, other = (
        open_start(options),
        open_start(
            settings(
                tmp_path,
                seed=1,
                **{name: getattr(options, name) for name in ("base", "tower", "connector", "num_frames")},
            )
        ),
    )
    for name, read in first.connector_sources().items():
        tensor = read()
        assert torch.equal(tensor, again.connector_sources()[name]())
        if ".bn." in name:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight"))))
        elif name.endswith("weight"):
            bound = tensor[0].numel() ** -0.5
            assert tensor.abs().max() <= bound and tensor.std() > 0.4 * bound, name
            assert not torch.equal(tensor, other.connector_sources()[name]())


def test_a_language_model_is_no_checkpoint(tmp_path):
    base = plain_language_model("mistral-clip-8f-base", tmp_path)
    with pytest.raises(CheckpointMismatch, match="only a language model .mistral.: name it with --base"):
        open_start(settings(tmp_path, checkpoint=base))
    with pytest.raises(CheckpointMismatch, match="model_type 'videollama2.*expected a plain language model"):
        open_start(settings(tmp_path, base=checkpoint("mistral-clip-8f"), tower=base, connector="stc_connector"))
    with pytest.raises(InvalidRequest, match="--connector needs --base"):
        open_start(settings(tmp_path, base=base, connector="stc_connector"))
    with pytest.raises(InvalidRequest, match="give a starting point"):
        settings(tmp_path)


def test_a_checkpoint_that_sees_gets_an_audio_tower(tmp_path):
    """Stage 1 trains the projector alone; the tower is BEATs' file, the rest the checkpoint's, bit for bit."""
    seen, beats = split_audio(tmp_path / "av")
    audio_stages(tmp_path / "data")
    options = settings(
        tmp_path,
        checkpoint=seen,
        audio_tower=beats,
        layout="audio_stage1",
        tune="audio",
        max_steps=1,
        batch_size=1,
        warmup=0.0,
    )
    start = open_start(options)
    start.check()
    written = train(options).checkpoint
    parts, whole = open_checkpoint(written), open_checkpoint(checkpoint("av-qwen2-siglip"))
    assert parts.config.audio == whole.config.audio and set(parts.names()) == set(whole.names())
    moved = {name for name in parts.names() if not torch.equal(parts.read(name).float(), whole.read(name).float())}
    assert moved == {name for name in whole.names() if name.startswith("model.mm_projector_a.")}
    name = "model.mm_projector_a.2.weight"
    assert not torch.equal(parts.read(name), start.read(name).to(torch.bfloat16))
    content = json.loads((written / "config.json").read_text())
    assert (content["mm_audio_tower"], content["mm_projector_a_type"]) == ("BEATs.pt", "mlp2x_gelu")
    assert answers(written, "audio", SOUND)


class Payload:
    def __reduce__(self):
        return (print, ("this ran",))


def test_what_is_no_beats_is_refused(tmp_path, capsys):
    torch.save({"cfg": {}, "model": {"x": Payload()}}, tmp_path / "unsafe.pt")
    torch.save({"cfg": {}, "model": {"x": torch.zeros(1)}}, tmp_path / "other.pt")
    torch.save({"cfg": {"layer_norm_first": True}, "model": {}}, tmp_path / "first.pt")
    for name, reason in (
        ("unsafe.pt", "not a file that has only tensors"),
        ("other.pt", "of BEATs' tensors"),
        ("first.pt", "layer_norm_first is True"),
        ("none.pt", "none.pt is missing"),
    ):
        with pytest.raises(CheckpointMismatch, match=reason):
            read_audio_tower(tmp_path / name)
    assert "this ran" not in capsys.readouterr().out


def test_the_connector_has_a_rate_of_its_own(tmp_path):
    from videollama_training.trainer import VideoTrainer, training_arguments

    options = settings(tmp_path, checkpoint=checkpoint("qwen2-siglip-16f"), tune="lora", lora_rank=2, weight_decay=0.1)
    model = prepare_model(open_start(options), Tokenizer(checkpoint("qwen2-siglip-16f")), options)
    trainer = VideoTrainer(model=model, args=training_arguments(options))
    trainer.connector_learning_rate = 3e-4
    trainer.create_optimizer()
    rates = {id(each): group["lr"] for group in trainer.optimizer.param_groups for each in group["params"]}
    decays = {id(each): group["weight_decay"] for group in trainer.optimizer.param_groups for each in group["params"]}
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert len(rates) == len(trained)
    for name, each in trained.items():
        assert rates[id(each)] == (3e-4 if name.startswith("connector.") else 2e-5), name
        assert decays[id(each)] == (0.0 if name.endswith("bias") or ".bn." in name else 0.1), name


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({"freeze_backbone": True}, {"connector", "lm_head"}),
        ({"freeze_connector": True}, {"layers", "embed_tokens", "norm", "lm_head"}),
        ({"tune": "lora", "lora_rank": 2, "freeze_connector": True}, {"adapters"}),
        ({"tune": "lora", "lora_rank": 2, "lora_bias": "all"}, {"adapters", "biases", "connector"}),
    ],
)
def test_only_the_named_parts_learn(changes, trained, tmp_path):
    options = settings(tmp_path, checkpoint=checkpoint("qwen2-siglip-16f"), **changes)
    model = prepare_model(open_start(options), Tokenizer(checkpoint("qwen2-siglip-16f")), options)

    def kind(name: str) -> str:
        if ".lora_" in name:
            return "adapters"
        if name.endswith("base_layer.bias"):
            return "biases"
        return name.removeprefix("decoder.").removeprefix("model.").split(".")[0]

    assert {kind(name) for name, each in model.named_parameters() if each.requires_grad} == trained


def test_biases_that_were_trained_are_written_with_the_adapters(tmp_path):
    custom_sft(tmp_path / "data")
    options = settings(
        tmp_path,
        checkpoint=checkpoint("qwen2-siglip-16f"),
        layout="custom_sft",
        tune="lora",
        lora_rank=2,
        lora_bias="all",
        learning_rate=1e-2,
        warmup=0.0,
        max_steps=3,
    )
    written = train(options).checkpoint
    start, parts = open_start(options), open_checkpoint(written)
    parts.check()
    biases = [name for name in parts.names() if name.startswith("model.layers.") and name.endswith("bias")]
    assert biases and all(not torch.equal(parts.read(name).float(), start.read(name).float()) for name in biases)


def test_a_global_batch_is_made_of_whole_steps(tmp_path):
    options = settings(tmp_path, checkpoint=tmp_path, batch_size=4, global_batch_size=128)
    assert (options.steps_to_accumulate(1), options.steps_to_accumulate(8)) == (32, 4)
    with pytest.raises(InvalidRequest, match="128 is not a multiple of 3 processes x --batch-size 4"):
        options.steps_to_accumulate(3)
    with pytest.raises(InvalidRequest, match="leave out --accumulate"):
        settings(tmp_path, checkpoint=tmp_path, global_batch_size=8, accumulate=2)


def test_a_run_is_logged_for_tensorboard(tmp_path):
    custom_sft(tmp_path / "data")
    options = settings(
        tmp_path, checkpoint=checkpoint("mistral-clip-8f"), layout="custom_sft", max_steps=1, tensorboard=True
    )
    assert np.isfinite(train(options).losses[0]["loss"])
    (events,) = (tmp_path / "run/tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
