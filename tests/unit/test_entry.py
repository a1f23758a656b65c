"""The life of one question, with small real stand-ins for the other stages."""

import shutil
from dataclasses import asdict

import numpy as np
import pytest

from conftest import checkpoint
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.contrast import Noise
from videollama_core.engines.bundle import Bundle
from videollama_core.media.video import Segment
from videollama_core.protocol.errors import (
    BadSegment,
    Cancelled,
    InvalidRequest,
    PromptTooLong,
    StageDied,
    StageFailed,
    StageRestarting,
)
from videollama_core.protocol.messages import SamplingOptions, as_conversation
from videollama_server.stages import entry
from videollama_server.stages.entry import Entry, Perception, Question

VARIANT = "qwen2-clip-8f"


class Generation:
    def __init__(self, script) -> None:
        self.script, self.stopped = list(script), False

    def next(self, timeout):
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        return step

    def stop(self) -> None:
        self.stopped = True


class Stages:
    """Perceives as many rows as the checkpoint has, and generates what each script says, one script a call."""

    def __init__(self, *scripts, perceptions=()) -> None:
        self.scripts, self.perceptions = list(scripts), list(perceptions)
        self.asked, self.generations = [], []

    def perceive(self, kind, files, segment, noise):
        self.noise = noise
        if self.perceptions and isinstance(error := self.perceptions.pop(0), Exception):
            raise error
        rows = read_model_config(checkpoint(VARIANT)).media_tokens * (1 if noise is None else 2)
        spans = {"preprocess": (0.0, 1.0), "encoder": (1.0, 2.0)}
        return Perception(np.zeros((1, rows, 56), np.float32), rows, 7, spans)

    def generate(self, request_id, prompt, seen, sampling):
        self.asked.append((request_id, prompt, seen, sampling))
        self.generations.append(Generation(self.scripts.pop(0)))
        return self.generations[-1]


@pytest.fixture
def bundle(tmp_path):
    """The parts of a bundle that the entry reads."""
    shutil.copytree(checkpoint(VARIANT), tmp_path / "llm")
    config = read_model_config(checkpoint(VARIANT))
    return Bundle(tmp_path, config, {"max_seq_len": 200, "engine": "onnx"})


def run(bundle, stages, question, is_cancelled=lambda: False):
    sent = []
    Entry(bundle, stages).answer(question, sent.append, is_cancelled)
    assert all(piece.summary is None for piece in sent[:-1])
    text = "".join(piece.text for piece in sent)
    return text, [index for piece in sent for index in piece.output_ids], asdict(sent[-1].summary)


def ask(text="Who?", **more) -> Question:
    return Question(as_conversation(text), more.pop("options", SamplingOptions()), **more)


def test_an_answer_ends_by_its_end_id_or_its_length(bundle):
    text, ids, summary = run(bundle, Stages([[5], [], [6], [999], None]), ask())
    assert ids == [5, 6, 999] and summary["finish_reason"] == "stop" and text
    assert summary["usage"]["completion_tokens"] == 3
    _, _, summary = run(bundle, Stages([[5], [6], None]), ask(options=SamplingOptions(max_new_tokens=2)))
    assert summary["finish_reason"] == "length"


def test_tokens_are_limited_to_the_room_that_the_context_leaves(bundle):
    stages = Stages([[5], None])
    run(bundle, stages, ask())
    _, prompt, _, sampling = stages.asked[0]
    assert sampling.max_new_tokens == 200 - len(prompt.input_ids)
    with pytest.raises(PromptTooLong):
        run(bundle, Stages(), ask("word " * 300))


def test_spans_before_the_request_mean_that_the_cache_answered(bundle):
    _, _, summary = run(bundle, Stages([[5], None]), ask(kind="image", files=(b"x",)))
    assert summary["seconds"]["preprocess"] == summary["seconds"]["encoder"] == 0
    assert summary["usage"]["media_tokens"] == bundle.config.media_tokens


def test_a_contrast_asks_for_noise_with_the_requests_seed(bundle):
    stages = Stages([[5], None])
    options = SamplingOptions(vcd_alpha=1, vcd_noise_step=400, seed=7)
    _, _, summary = run(bundle, stages, ask(kind="image", files=(b"x",), options=options))
    assert stages.noise == Noise(400, 7) and summary["usage"]["media_tokens"] == bundle.config.media_tokens
    _, prompt, seen, sampling = stages.asked[0]
    assert seen.rows == 2 * prompt.media_tokens and (sampling.vcd_alpha, sampling.vcd_beta) == (1.0, 0.1)
    run(bundle, stages := Stages([[5], None]), ask(kind="image", files=(b"x",), options=SamplingOptions(vcd_alpha=0)))
    assert stages.noise is None


def test_a_contrast_that_cannot_be_is_refused_before_the_media_is_looked_at(bundle):
    options = SamplingOptions(vcd_alpha=1)
    for more in ({}, {"kind": "audio", "files": (b"x",)}):
        with pytest.raises(InvalidRequest, match="there are none here"):
            run(bundle, stages := Stages(), ask(options=options, **more))
        assert not hasattr(stages, "noise")
    tensorrt = Bundle(bundle.root, bundle.config, bundle.manifest | {"engine": "tensorrt"})
    with pytest.raises(InvalidRequest, match="TensorRT and vLLM do not"):
        run(tensorrt, Stages(), ask(kind="image", files=(b"x",), options=options))


def test_a_client_that_left_stops_the_language_model(bundle):
    stages, left = Stages([[5], [6], [7], None]), []
    with pytest.raises(Cancelled):
        run(
            bundle,
            stages,
            ask(),
            lambda: bool(left) or (len(stages.asked) > 0 and len(stages.generations[0].script) < 3),
        )
    assert stages.generations[0].stopped


def test_a_failing_stage_stops_the_language_model(bundle):
    stages = Stages([[5], StageFailed("broken")])
    with pytest.raises(StageFailed, match="broken"):
        run(bundle, stages, ask())
    assert stages.generations[0].stopped


def test_a_stage_that_is_being_started_again_is_waited_for(bundle, monkeypatch):
    monkeypatch.setattr(entry, "POLL_SECONDS", 0.001)
    restarting = StageDied("Stub process 'encoder_0_0' is not healthy")
    stages = Stages([restarting], [restarting], [[5], None], perceptions=[restarting, restarting])
    _, ids, _ = run(bundle, stages, ask(kind="image", files=(b"x",)))
    assert ids == [5] and len({request_id for request_id, *_ in stages.asked}) == 3


def test_a_file_that_kills_its_stage_is_given_up(bundle, monkeypatch):
    monkeypatch.setattr(entry, "POLL_SECONDS", 0.001)
    deadly = [StageDied("Stub process 'preprocess_0_0' is not healthy") for _ in range(10)]
    stages = Stages(perceptions=deadly)
    with pytest.raises(StageRestarting):
        run(bundle, stages, ask(kind="video", files=(b"x",)))
    assert len(stages.perceptions) == 10 - entry.DEATHS_ALLOWED - 1


def test_an_answer_that_has_begun_is_not_begun_again(bundle):
    stages = Stages([[5], StageDied("not healthy")], [[6], None])
    with pytest.raises(StageRestarting):
        run(bundle, stages, ask())
    assert len(stages.asked) == 1


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"files": (b"x",)}, InvalidRequest),
        ({"kind": "video"}, InvalidRequest),
        ({"kind": "smell", "files": (b"x",)}, InvalidRequest),
        ({"segment": Segment(1.0, None)}, InvalidRequest),
        ({"kind": "video", "files": (b"x",), "segment": Segment(2.0, 1.0)}, BadSegment),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(more, kind):
    with pytest.raises(kind):
        ask(**more)


def test_media_has_a_size_limit(monkeypatch):
    monkeypatch.setattr(entry, "MAX_MEDIA_BYTES", 10)
    with pytest.raises(InvalidRequest, match="11 bytes"):
        ask(kind="frames", files=(b"12345", b"123456"))
