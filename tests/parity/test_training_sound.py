"""Training an audio tower: sounds and videos with sound in one batch, what is trained and what is kept, and the tiny checkpoint's own tower."""

import json

import pytest
import torch

from conftest import AUDIO_VARIANT, MEDIA, checkpoint
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.media.audio import filterbank
from videollama_core.pipeline import Pipeline
from videollama_core.protocol.errors import BadSample, InvalidRequest
from videollama_core.text import Tokenizer
from videollama_training.data.batches import Collator, RowDataset
from videollama_training.data.samples import read_samples
from videollama_training.model import TrainableModel
from videollama_training.shapes.audio_tower import AUDIO_TOWER, KINDS, NOW, UNCERTAIN, add_audio_tower, moment_labels
from videollama_training.shapes.sounds import Sound
from videollama_training.train import TrainingOptions, train

MEDIA_OF = {
    "audio": {"audio": "stereo_44k1_2s.wav"},
    "video_with_audio": {"video": "plain_96x64.mp4", "with_audio": True},
    "video": {"video": "vfr_80x60.mp4"},
    "text": {},
}


def samples(folder, *kinds):
    entries = []
    for kind in kinds:
        placeholder = "" if kind == "text" else f"<{kind.removesuffix('_with_audio')}>"
        asked = {"from": "human", "value": f"{placeholder}\nWhat is it?"}  # as served: the newline without media, too
        turns = [asked, {"from": "gpt", "value": "Two low beeps."}]
        entries.append(MEDIA_OF[kind] | {"id": kind, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(entries))
    return list(read_samples(folder / "data.json", MEDIA))


def options(tmp_path, **changes):
    settings = {
        "checkpoint": checkpoint(AUDIO_VARIANT),
        "data": (tmp_path / "data.json",),
        "media_folder": MEDIA,
        "out": tmp_path / "run",
        "max_steps": 2,
        "batch_size": 2,
        "learning_rate": 5e-3,
        "log_steps": 1,
    }
    return TrainingOptions(**(settings | changes))


@torch.inference_mode()
def test_what_is_heard_in_training_is_what_is_heard_in_service(tmp_path):
    """Sound, video with sound, video and text in one batch: each first token is as likely as in the pipeline."""
    pipeline = Pipeline(checkpoint(AUDIO_VARIANT))
    parts = open_checkpoint(checkpoint(AUDIO_VARIANT))
    model = TrainableModel(parts, pipeline.tokenizer.pad_id)
    rows = RowDataset(samples(tmp_path, *MEDIA_OF), pipeline.tokenizer, parts.config)
    batch = Collator(parts.config)([rows[place] for place in range(len(rows))])
    assert len(batch["filterbank"]) == len(batch["frame_index"]) == 2
    for number, (kind, media) in enumerate(MEDIA_OF.items()):
        first = int((batch["source"][:, 0] == number).nonzero()[0])
        picked = {
            name: batch[name][first : first + 1] if name in ("source", "target") else batch[name] for name in batch
        }
        tokens = None
        if kind != "text":
            (file,) = (value for value in media.values() if isinstance(value, str))
            tokens = pipeline.media_tokens(pipeline.prepare(kind, [(MEDIA / file).read_bytes()]))
        modality = "video" if kind == "video_with_audio" else kind
        count = 0 if tokens is None else len(tokens)
        prompt = pipeline.prompt([{"role": "user", "content": "What is it?"}], modality, count)
        scores = torch.from_numpy(next(pipeline.logits(prompt, tokens)))
        expected = -torch.log_softmax(scores, 0)[batch["target"][first]]
        assert abs(float(model(**picked)["loss"]) - float(expected)) < 2e-4, kind


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"tune": "audio"}, ("model.mm_projector_a.",)),
        ({"tune": "audio", "tune_audio_tower": True}, ("model.mm_projector_a.", "model.audio_tower.")),
        ({"tune": "full"}, ("model.mm_projector_a.", "model.mm_projector.", "model.layers.")),
    ],
)
def test_only_what_is_named_moves_and_what_is_written_is_read_back(tmp_path, changes, moved):
    samples(tmp_path, "audio", "video_with_audio")
    written = train(options(tmp_path, **changes)).checkpoint
    before, after = open_checkpoint(checkpoint(AUDIO_VARIANT)), open_checkpoint(written)
    after.check()
    assert after.config == before.config and set(after.names()) == set(before.names())
    changed = {
        name for name in after.names() if not torch.equal(after.read(name), before.read(name).to(torch.bfloat16))
    }
    kinds = {".".join(name.split(".")[:2]) + "." for name in changed if name.startswith("model.")}
    assert set(moved) <= kinds and kinds - set(moved) <= {"model.norm.", "model.embed_tokens."}
    assert ("model.norm." in kinds) == (changes["tune"] == "full")


def test_a_trained_audio_tower_hears_as_it_did_in_training(tmp_path, monkeypatch):
    """Direction, length and tables, as they are stored, give the trained tower's features."""
    import videollama_training.train as module

    kept = {}
    original = module.save_checkpoint

    def keep(state, *rest):
        kept.update({name: tensor.clone() for name, tensor in state.items() if name.startswith("audio.")})
        original(state, *rest)

    monkeypatch.setattr(module, "save_checkpoint", keep)
    samples(tmp_path, "audio")
    written = train(options(tmp_path, tune="audio", tune_audio_tower=True)).checkpoint
    trained = open_checkpoint(checkpoint(AUDIO_VARIANT)).audio_encoder()
    trained.load_state_dict({name.removeprefix("audio."): tensor for name, tensor in kept.items()})
    stored = open_checkpoint(written).audio_encoder()
    for (name, weights), expected in zip(stored.state_dict().items(), trained.state_dict().values(), strict=True):
        assert torch.allclose(weights, expected, rtol=2e-2, atol=1e-3), name


def test_an_audio_tower_is_trained_only_where_it_exists_and_can_be_written(tmp_path):
    samples(tmp_path, "audio")
    with pytest.raises(InvalidRequest, match="layout without an audio projector"):
        train(options(tmp_path, tune="lora"))
    deaf = checkpoint("qwen2-siglip-16f")
    with pytest.raises(InvalidRequest, match="has no audio tower"):
        train(options(tmp_path, checkpoint=deaf, tune="audio"))
    with pytest.raises(BadSample, match="sample audio: .*has no audio tower"):
        train(options(tmp_path, checkpoint=deaf))


def test_a_tiny_checkpoint_gets_an_audio_tower_in_the_published_layout(tmp_path):
    add_audio_tower(checkpoint("tiny-shapes"), tmp_path / "av", seed=1, steps=2)
    parts = open_checkpoint(tmp_path / "av")
    parts.check()
    assert parts.config.audio == AUDIO_TOWER and parts.config.language.max_positions == 2048
    assert parts.audio_encoder()(torch.from_numpy(filterbank(torch.zeros(480_000).numpy()))[None]).shape == (
        1,
        1496,
        192,
    )
    assert Tokenizer(tmp_path / "av").encode("beeps")


def test_moments_say_what_sounds():
    beeps = moment_labels(Sound("beeps", "low", (0.5, 1.5)), 3.0, 1, 187)
    assert (beeps[:, 1] == KINDS.index("beeps")).all() and (beeps[:, 2] == 2).all()
    heard = {moment for moment in range(187) if beeps[moment, 0] == NOW.index("low")}
    assert heard and all(
        any(abs(moment * 0.16 + 0.08 - (beep + 0.06)) < 0.17 for beep in (0.5, 1.5)) for moment in heard
    )
    again = moment_labels(Sound("beeps", "high", (0.5,)), 2.0, 8, 187)
    assert (again[100:, 0] == 0).all() and sum(again[:, 0] == NOW.index("high")) >= 8
    mixed = moment_labels(Sound("beeps", "mixed", (0.5, 1.5), pitches=("high", "low")), 3.0, 1, 187)
    for start, pitch in ((0.5, "high"), (1.5, "low")):
        near = mixed[int((start - 0.1) / 0.16) : int((start + 0.3) / 0.16) + 1, 0]
        assert {NOW.index(pitch)} <= set(near.tolist()) <= {NOW.index(pitch), 0, UNCERTAIN}
    assert (mixed[:, 2] == 2).all()
    glide = moment_labels(Sound("glide", glide="rising"), 3.0, 1, 187)
    assert (glide[:18, 0] == UNCERTAIN).all() and (glide[20:, 0] == 0).all()
    assert (glide[:, 1] == KINDS.index("rising")).all()
