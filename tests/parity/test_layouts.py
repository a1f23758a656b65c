"""Base folders and adapters: found by their files, completed from their base model, merged exactly."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import copy, edit_json
from conftest import GOLDEN, checkpoint
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.model import vision
from videollama_core.protocol.errors import CheckpointMismatch

BASE, LORA = "mistral-clip-8f-base", "mistral-clip-8f-lora"


def lora_copy(tmp_path):
    copy(LORA, tmp_path / "lora")
    return tmp_path / "lora" / "lora-checkpoint"


@pytest.mark.parametrize(("variant", "layout"), [("mistral-clip-8f", "chat"), (BASE, "base"), (LORA, "lora")])
def test_a_layout_is_told_by_its_files(variant, layout):
    parts = open_checkpoint(checkpoint(variant))
    assert parts.folders.layout == layout
    parts.check()


def test_a_whole_checkpoint_that_says_it_is_a_base_folder_is_still_whole(tmp_path):
    """The flag of training is left over in some configs; the files decide."""
    source = copy("mistral-clip-8f", tmp_path / "source")
    edit_json(source / "config.json", tune_mm_mlp_adapter=True)
    assert open_checkpoint(source).folders.layout == "chat"


@pytest.mark.parametrize("variant", [BASE, LORA])
def test_base_and_tower_can_be_named(variant, tmp_path):
    """A folder that was copied alone needs both; each missing one is asked for."""
    alone = tmp_path / "alone"
    shutil.copytree(checkpoint(variant), alone)
    base = GOLDEN / variant / "base/mistral-tiny-instruct"
    tower = GOLDEN / variant / "towers/clip-vit-tiny-patch14-56"
    with pytest.raises(CheckpointMismatch, match="name its folder with --tower"):
        open_checkpoint(alone, base=base)
    with pytest.raises(CheckpointMismatch, match="'base/mistral-tiny-instruct' is not a folder near it.*--base"):
        open_checkpoint(alone, tower=tower)
    opened, wanted = open_checkpoint(alone, tower, base), open_checkpoint(checkpoint(variant))
    assert all(torch.equal(opened.read(name), wanted.read(name)) for name in wanted.names())


def test_a_base_for_a_whole_checkpoint_is_a_mistake():
    with pytest.raises(CheckpointMismatch, match="complete .chat. checkpoint, which has no base model"):
        open_checkpoint(checkpoint("mistral-clip-8f"), base=GOLDEN / BASE / "base/mistral-tiny-instruct")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "use_dora is True; only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"bias": "some"}, "bias is 'some'"),
        ({"peft_type": "IA3"}, "'IA3' with r 8.*; expected LoRA"),
        ({"r": None}, "with r None"),
    ],
)
def test_adapters_of_another_kind_are_refused(changes, reason, tmp_path):
    source = lora_copy(tmp_path)
    edit_json(source / "adapter_config.json", **changes)
    with pytest.raises(CheckpointMismatch, match=reason):
        open_checkpoint(source)


def with_adapters(source, change):
    """The adapters as safetensors instead of a pickle, after a change."""
    adapters = torch.load(source / "adapter_model.bin", weights_only=True)
    change(adapters)
    (source / "adapter_model.bin").unlink()
    save_file({name: tensor.contiguous() for name, tensor in adapters.items()}, source / "adapter_model.safetensors")
    return source


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def test_adapters_as_safetensors_are_the_same(tmp_path):
    merged = open_checkpoint(with_adapters(lora_copy(tmp_path), lambda adapters: None))
    wanted = open_checkpoint(checkpoint(LORA))
    assert all(torch.equal(merged.read(name), wanted.read(name)) for name in wanted.names())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a.pop(f"{Q_PROJ}.lora_A.weight"), "layers.0.self_attn.q_proj.weight, but has no lora_A"),
        (
            lambda a: a.update({k.replace("layers.0", "layers.7"): a.pop(k) for k in list(a) if "layers.0." in k}),
            "layers.7.* which the base model does not have",
        ),
        (
            lambda a: a.update({f"{Q_PROJ}.lora_A.weight": torch.zeros(8, 5)}),
            r"\[64, 8\] x \[8, 5\], but the weight is",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_named(change, reason, tmp_path):
    source = with_adapters(lora_copy(tmp_path), change)
    with pytest.raises(CheckpointMismatch, match=reason):
        open_checkpoint(source).check()


def test_a_folder_of_adapters_without_adapters_is_named(tmp_path):
    source = lora_copy(tmp_path)
    (source / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointMismatch, match="but neither adapter_model.safetensors nor adapter_model.bin"):
        open_checkpoint(source)


def test_adapters_of_the_tower_are_merged_too(tmp_path):
    """Leaf names such as q_proj match the tower's as well, so training from a model with a tower adapts it."""
    torch.manual_seed(1)
    name = f"{vision.PREFIX}encoder.layers.0.self_attn.q_proj"
    a, b = torch.randn(8, 48), torch.randn(48, 8)
    wrapped = f"base_model.model.{name}"
    added = {f"{wrapped}.lora_A.weight": a, f"{wrapped}.lora_B.weight": b}
    merged = open_checkpoint(with_adapters(lora_copy(tmp_path), lambda adapters: adapters.update(added)))
    before = open_checkpoint(checkpoint(LORA)).read(f"{name}.weight").float()
    assert torch.allclose(merged.read(f"{name}.weight"), before + 2.0 * (b @ a), atol=1e-6)  # alpha 16 over rank 8


def test_adapters_of_another_base_are_refused(tmp_path):
    source = lora_copy(tmp_path)
    content = json.loads((source / "config.json").read_text())
    edit_json(source / "config.json", vocab_size=content["vocab_size"] + 1)
    with pytest.raises(CheckpointMismatch, match="trained on a model with vocab_size 1001, but .* has 1000"):
        open_checkpoint(source)
