"""Training: the loss is that of the model that will be served, runs repeat and resume, bad data is named."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import MEDIA
from training_runs import losses, model_of, options, rows_of
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_core.text import Tokenizer
from videollama_training.data.batches import Collator, RowDataset
from videollama_training.data.samples import read_samples
from videollama_training.shapes.make import (
    PICTURES,
    TEXTS,
    TRAIN,
)
from videollama_training.train import train


@torch.inference_mode()
@pytest.mark.parametrize("name", [TRAIN, PICTURES, TEXTS])
def test_questions_that_share_a_row_do_not_see_one_another(world, name):
    """The packed loss is the mean over all tokens of the losses alone; about clips, pictures and nothing."""
    model, parts = model_of(world / "start")
    collate = Collator(parts.config)
    packed = collate([rows_of(world, parts, 4, name)[0]])
    alone = [collate([row]) for row in (rows_of(world, parts, 1, name)[place] for place in range(4))]
    total = sum(float(model(**batch)["loss"]) * len(batch["target"]) for batch in alone)
    tokens = sum(len(batch["target"]) for batch in alone)
    assert tokens == len(packed["target"])
    assert abs(float(model(**packed)["loss"]) - total / tokens) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["video", "image", "text"])
def test_what_is_trained_is_what_is_served(world, kind):
    """The probability of the answer's first token is that of the in-process pipeline, template and media included."""
    model, parts = model_of(world / "start")
    pipeline = Pipeline(world / "start")
    media = {"video": "plain_96x64.mp4", "image": "desert.jpg", "text": None}[kind]
    asked = f"<{kind}>\nWhat is it?" if media else "\nWhat is it?"  # without media the served prompt has a newline, too
    entry = {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "Red."}]}
    (world / "one.json").write_text(json.dumps([entry | ({kind: media} if media else {})]))
    (sample,) = read_samples(world / "one.json", MEDIA)
    row = RowDataset([sample], pipeline.tokenizer, parts.config)[0]
    batch = Collator(parts.config)([row])
    first = {name: batch[name][:1] if name in ("source", "target") else batch[name] for name in batch}
    tokens = None
    if media:
        tokens = pipeline.media_tokens(pipeline.prepare(kind, [(MEDIA / media).read_bytes()]))
    prompt = pipeline.prompt([{"role": "user", "content": "What is it?"}], kind, 0 if tokens is None else len(tokens))
    scores = torch.from_numpy(next(pipeline.logits(prompt, tokens)))
    expected = -torch.log_softmax(scores, 0)[batch["target"][0]]
    assert abs(float(model(**first)["loss"]) - float(expected)) < 1e-4


@torch.inference_mode()
def test_a_picture_costs_one_time_step_and_gives_all_tokens(world):
    """Clips and pictures in one batch: the tokens of each are those that it has alone, and those of the pipeline."""
    model, parts = model_of(world / "start")
    collate = Collator(parts.config)
    rows = [rows_of(world, parts, 1, name)[place] for name, place in ((PICTURES, 0), (TRAIN, 0), (PICTURES, 4))]
    batch = collate(rows)
    together = model.media_tokens(batch["frames"], batch["frame_index"])
    pipeline = Pipeline(world / "start")
    for place, row in enumerate(rows):
        assert torch.allclose(together[place], pipeline.encode_frames(row.media.frames), atol=1e-5)


def test_the_same_seed_gives_the_same_losses_and_the_loss_falls(world, tmp_path):
    runs = [losses(train(options(world, tmp_path / name, max_steps=6, tune_tower=True))) for name in ("a", "b")]
    assert np.allclose(runs[0], runs[1], atol=1e-5)
    assert runs[0][-1] < runs[0][0]
    assert (tmp_path / "a/loss.png").read_bytes().startswith(b"\x89PNG")
    assert [entry["loss"] for entry in json.loads((tmp_path / "a/loss.json").read_text())] == runs[0]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(world, tmp_path):
    whole = train(options(world, tmp_path / "run", max_steps=4, save_steps=2))
    before = load_file(whole.checkpoint / "model.safetensors")
    shutil.rmtree(tmp_path / "run/state/checkpoint-4")
    shutil.rmtree(whole.checkpoint)
    with pytest.raises(InvalidRequest, match="checkpoint-2; continue it with --resume"):
        train(options(world, tmp_path / "run", max_steps=4, save_steps=2))
    resumed = train(options(world, tmp_path / "run", max_steps=4, save_steps=2, resume=True))
    assert np.allclose(losses(resumed), losses(whole), atol=1e-5)
    after = load_file(resumed.checkpoint / "model.safetensors")
    assert all(torch.allclose(after[name].float(), before[name].float(), atol=1e-2) for name in before)


@pytest.mark.parametrize(
    ("tune", "trained", "frozen"),
    [
        ("connector", "connector.", ("vision.", "decoder.")),
        ("full", ("connector.", "decoder."), "vision."),
        ("lora", ("connector.", "decoder.base_model"), "vision."),
    ],
)
def test_only_what_is_named_is_trained(world, tmp_path, tune, trained, frozen):
    from videollama_training.train import prepare_model

    parts = open_checkpoint(world / "start")
    model = prepare_model(parts, Tokenizer(world / "start"), options(world, tmp_path, tune=tune))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all(name.startswith(trained) for name in trainable)
    assert not any(name.startswith(frozen) for name in trainable)
    if tune == "lora":  # every Linear but lm_head, as the reference does; the connector besides
        adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable if "lora_" in name}
        assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_layers_computed_twice_give_the_same_gradients(world):
    from videollama_training.train import prepare_model

    parts = open_checkpoint(world / "start")
    batch = Collator(parts.config)([rows_of(world, parts, 2)[0]])
    gradients = []
    for again in (False, True):
        model = prepare_model(parts, Tokenizer(world / "start"), options(world, world / "unused", tune_tower=True))
        if again:
            model.activation_checkpointing_enable()
        model.train()
        model(**batch)["loss"].backward()
        gradients.append(
            {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if gradient is not None:
            assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


BAD = {
    "missing": ({"id": "m", "video": "gone.mp4"}, "sample m: .*gone.mp4 is missing"),
    "broken": ({"id": "b", "video": "broken.mp4"}, "sample b: .*broken.mp4: "),
    "empty": ({"id": "e", "video": "train/00000.mp4", "conversations": []}, "sample e: its conversation is empty"),
    "two": ({"id": "t", "video": "x.mp4", "image": "x.png"}, "sample t: it has video and image"),
    "long": ({"id": "l", "conversations": [{"from": "human", "value": "x " * 3000}, {"from": "gpt", "value": "y"}]}, "sample l: its first .* text tokens have no answer to learn"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_ends_a_run_with_the_samples_name_or_is_skipped_with_a_count(world, tmp_path, kind):
    entry, reason = BAD[kind]
    (world / "broken.mp4").write_bytes(b"not a video")
    messages = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "That."}]
    good = json.loads((world / "train.json").read_text())[:4]
    (world / "mixed.json").write_text(json.dumps([{"conversations": messages} | entry, *good]))
    mixed = options(world, tmp_path / "run", data=(world / "mixed.json",), max_steps=1, batch_size=8)
    with pytest.raises(BadSample, match=reason):
        train(mixed)
    result = train(dataclasses.replace(mixed, out=tmp_path / "again", skip_bad=True))
    assert result.skipped == 1 and result.steps == 1
    (line,) = (tmp_path / "again/bad_samples.jsonl").read_text().splitlines()
    assert f"sample {entry['id']}: " in json.loads(line)["reason"]


def test_nothing_but_bad_data_is_an_error(world, tmp_path):
    (world / "bad.json").write_text(json.dumps([BAD["missing"][0]]))
    with pytest.raises(BadSample, match="no sample of"):
        train(options(world, tmp_path / "run", data=(world / "bad.json",), skip_bad=True))
