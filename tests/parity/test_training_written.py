"""What a training run writes is read back: each published layout, merged and rounded, through the converter."""

import json

import numpy as np
import pytest
import torch

from training_runs import losses, model_of, options, rows_of
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.protocol.errors import CheckpointMismatch
from videollama_core.text import Tokenizer
from videollama_training.data.batches import Collator
from videollama_training.save import published_names
from videollama_training.train import train

# bfloat16 keeps 8 bits: weights move by up to 0.4 %, and the logits of these tiny models by less than this.
STORED_TOLERANCE = 0.15


@pytest.mark.parametrize(("tune", "layout"), [("full", "chat"), ("connector", "base"), ("lora", "lora")])
def test_what_is_written_is_read_back_and_converted(world, tmp_path, tune, layout):
    """Each published layout, from the trainer to the converter's own parity check."""
    from videollama_converters.convert import convert

    run = options(world, tmp_path / "run", tune=tune, plain=False, max_steps=3, learning_rate=5e-3, lora_dropout=0.0)
    written = train(run).checkpoint
    parts = open_checkpoint(written)
    assert parts.folders.layout == layout
    parts.check()
    start = open_checkpoint(world / "start")
    moved = [name for name in parts.names() if not torch.equal(parts.read(name).float(), start.read(name).float())]
    assert any(name.startswith("model.mm_projector.") for name in moved)
    assert any(name.startswith("model.layers.") for name in moved) == (tune != "connector")
    assert not any(name.startswith("model.vision_tower.") for name in moved)
    convert(written, tmp_path / "bundle")
    report = json.loads((tmp_path / "bundle/parity.json").read_text())
    assert len(report) == 4
    config = json.loads((tmp_path / "bundle/llm/config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]


@torch.inference_mode()
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_the_written_checkpoint_is_the_trained_model(world, tmp_path, tune, monkeypatch):
    """Its loss, adapters merged and weights rounded to bfloat16, is the trained model's."""
    import videollama_training.train as module

    kept = {}
    original = module.save_checkpoint

    def keep(state, *rest):
        kept["state"] = {name: tensor.clone() for name, tensor in state.items()}
        original(state, *rest)

    monkeypatch.setattr(module, "save_checkpoint", keep)
    with torch.inference_mode(False):
        written = train(options(world, tmp_path / "run", tune=tune, max_steps=3, lora_dropout=0.0)).checkpoint
    model, parts = model_of(written)
    batch = Collator(parts.config)([rows_of(world, parts, 4)[0]])
    loss = float(model(**batch)["loss"])
    if tune == "full":
        trained, _ = model_of(world / "start")
        trained.load_state_dict(kept["state"])
        assert abs(loss - float(trained(**batch)["loss"])) < STORED_TOLERANCE
    named = published_names(kept["state"])
    name = "model.layers.0.self_attn.q_proj.weight"
    if tune == "lora":
        prefix = "base_model.model." + name.removesuffix(".weight")
        a, b = named[f"{prefix}.lora_A.default.weight"], named[f"{prefix}.lora_B.default.weight"]
        expected = named[f"{prefix}.base_layer.weight"] + 2.0 * (b @ a)  # alpha 8 over rank 4
        assert float(b.abs().max()) > 0
    else:
        expected = named[name]
    assert torch.allclose(parts.read(name).float(), expected, rtol=1e-2, atol=1e-3)


def test_qlora_trains_adapters_around_four_bit_weights(world, tmp_path):
    from bitsandbytes.nn import Linear4bit

    from videollama_training.train import prepare_model

    parts = open_checkpoint(world / "start")
    model = prepare_model(parts, Tokenizer(world / "start"), options(world, tmp_path, tune="qlora"))
    kinds = [module for module in model.decoder.modules() if isinstance(module, Linear4bit)]
    assert len(kinds) == 7 * parts.config.language.layers
    result = train(options(world, tmp_path / "run", tune="qlora", max_steps=2))
    assert all(np.isfinite(losses(result)))
    assert open_checkpoint(result.checkpoint).folders.layout == "lora"


def test_adapters_of_another_base_are_refused(world, tmp_path):
    written = train(options(world, tmp_path / "run", tune="lora", max_steps=1)).checkpoint
    config = json.loads((written / "config.json").read_text())
    (written / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(CheckpointMismatch, match="trained on a model with num_hidden_layers 5, but .* has 4"):
        open_checkpoint(written)
    (written / "config.json").write_text(json.dumps(config | {"_name_or_path": "/nowhere"}))
    with pytest.raises(CheckpointMismatch, match="'/nowhere' is not a folder near it: name it with --base"):
        open_checkpoint(written)
    assert open_checkpoint(written, base=world / "start").folders.layout == "lora"
