"""The life of one question, with small stand-ins for the other stages."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from conftest import checkpoint
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.contrast import Noise
from videollama_core.engines.bundle import Bundle
from videollama_core.media.video import Segment
from videollama_core.protocol.errors import (
    Cancelled,
    InvalidRequest,
    PromptTooLong,
    StageDied,
    StageFailed,
    StageRestarting,
)
from videollama_core.protocol.messages import SamplingOptions, as_conversation
from videollama_core.telemetry.traces import Span
from videollama_server.answers import known_media
from videollama_server.answers.known_media import Media, Perception, Pixels
from videollama_server.fetch.gate import MediaGate
from videollama_server.fetch.policy import MediaPolicy
from videollama_server.stages import entry
from videollama_server.stages.entry import Entry, Question

VARIANT = "qwen2-clip-8f"


class Generation:
    """Yields what its script says once `Stages.work` reaches it."""

    def __init__(self, stages, script, listener) -> None:
        self.stages, self.script, self.listener, self.stopped = stages, list(script), listener, False

    def start(self) -> None:
        self.stages.work.append(self.go_on)

    def go_on(self) -> None:
        step = self.script.pop(0) if self.script else None
        if step is None or isinstance(step, Exception):
            self.listener.on_end(step)
        else:
            (self.listener.on_cached_tokens if isinstance(step, int) else self.listener.on_ids)(step)
            self.start()

    def stop(self) -> None:
        self.stopped = True


class Stages:
    """Perceives as many rows as the checkpoint has, and generates from the scripts, one script per call."""

    def __init__(self, *scripts, perceptions=()) -> None:
        self.scripts, self.perceptions = list(scripts), list(perceptions)
        self.asked, self.generations, self.traces = [], [], []
        self.perceived = self.prepared = 0
        self.work = []

    def perceive(self, media, noise, is_cancelled=None):
        self.noise, self.media = noise, media
        if self.perceptions and isinstance(error := self.perceptions.pop(0), Exception):
            raise error
        rows = read_model_config(checkpoint(VARIANT)).media_tokens * (1 if noise is None else 2)
        self.perceived += 1
        return Perception(
            np.zeros((1, rows, 56), np.float32), rows, 7, {"preprocess": (5.0, 6.0), "encoder": (6.5, 8.5)}
        )

    def preprocess(self, media, is_cancelled):
        self.prepared += 1
        return Pixels(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((0, 128), np.float32), (5.0, 6.0))

    def encode(self, pixels, noise, is_cancelled):
        seen = self.perceive(Media("image", (), Segment()), noise)
        return replace(seen, spans={"encoder": (6.5, 8.5)})

    def generate(self, request_id, prompt, seen, sampling, listener, traceparent):
        self.asked.append((request_id, prompt, seen, sampling))
        self.traces.append(traceparent)
        self.generations.append(Generation(self, self.scripts.pop(0), listener))
        return self.generations[-1]

    def later(self, seconds, call) -> None:
        self.work.append(call)


class Replied:
    """Records the reply to one question."""

    def __init__(self, is_cancelled=lambda: False) -> None:
        self.sent, self.error, self.is_cancelled = [], None, is_cancelled

    def send(self, piece) -> None:
        assert self.error is None and not (self.sent and self.sent[-1].summary), "something comes after the end"
        self.sent.append(piece)

    def fail(self, error) -> None:
        assert self.error is None
        self.error = error


def answer(entry, stages, question, is_cancelled=lambda: False):
    """Every piece. Raises: the error that the answer fails with."""
    replied = Replied(is_cancelled)
    answering = entry.answer(question, replied)
    while stages.work:
        if is_cancelled():
            answering.cancel()
        stages.work.pop(0)()
    if replied.error is not None:
        raise replied.error
    return replied.sent


@pytest.fixture
def bundle(tmp_path):
    """The parts of a bundle that the entry reads."""
    shutil.copytree(checkpoint(VARIANT), tmp_path / "llm")
    config = read_model_config(checkpoint(VARIANT))
    return Bundle(tmp_path, config, {"max_seq_len": 200, "engine": "onnx"})


def run(bundle, stages, question, is_cancelled=lambda: False):
    sent = answer(Entry(bundle, stages), stages, question, is_cancelled)
    assert all(piece.summary is None for piece in sent[:-1])
    text = "".join(piece.text for piece in sent)
    return text, [index for piece in sent for index in piece.output_ids], asdict(sent[-1].summary)


def ask(text="Who?", **more) -> Question:
    return Question(as_conversation(text), more.pop("options", SamplingOptions()), **more)


def test_an_answer_ends_at_an_end_id_or_at_its_length_limit(bundle):
    text, ids, summary = run(bundle, Stages([[5], [6], [999], None]), ask())
    assert ids == [5, 6, 999] and summary["finish_reason"] == "stop" and text
    assert summary["usage"]["completion_tokens"] == 3
    _, _, summary = run(bundle, Stages([[5], [6], None]), ask(options=SamplingOptions(max_new_tokens=2)))
    assert summary["finish_reason"] == "length"


def test_the_language_models_cache_figures_are_in_the_summary(bundle):
    for script, cached in (([3, [5], [6], None], 3), ([[5], None], 0)):
        assert run(bundle, Stages(script), ask())[2]["usage"]["cached_tokens"] == cached


def test_tokens_are_limited_to_the_remaining_context(bundle):
    stages = Stages([[5], None])
    run(bundle, stages, ask())
    _, prompt, _, sampling = stages.asked[0]
    assert sampling.max_new_tokens == 200 - len(prompt.input_ids)
    with pytest.raises(PromptTooLong):
        run(bundle, Stages(), ask("word " * 300))


IMAGE = {"kind": "image", "files": (b"x",)}


def seconds_of(entry, stages, question) -> tuple[float, float]:
    sent = answer(entry, stages, question)
    assert sent[-1].summary.usage.media_tokens > 0
    return sent[-1].summary.seconds["preprocess"], sent[-1].summary.seconds["encoder"]


def test_the_media_token_count_is_checked_before_memory_is_allocated(bundle):
    """2,147,483,647 of them, requested from the stage `prompt`, took 16 GB."""
    for count, kind in ((2**31 - 1, PromptTooLong), (200, PromptTooLong), (-1, InvalidRequest)):
        with pytest.raises(kind, match=f"found {count} media tokens"):
            entry.build_prompt(bundle, bundle.tokenizer(), as_conversation("Who?"), "video", count)


def test_a_second_question_about_the_same_media_calls_no_stage(bundle):
    stages = Stages(*[[[5], None]] * 5)
    entry = Entry(bundle, stages)
    assert [seconds_of(entry, stages, ask(text, **IMAGE)) for text in ("Who?", "What?")] == [(1.0, 2.0), (0.0, 0.0)]
    assert stages.perceived == 1
    assert seconds_of(entry, stages, ask(kind="image", files=(b"y",))) == (1.0, 2.0)
    options = SamplingOptions(vcd_alpha=1, seed=7)
    assert seconds_of(entry, stages, ask(options=options, **IMAGE)) == (1.0, 2.0)
    assert stages.perceived == 3 and entry.media.cache.bytes > 0


def test_cached_media_tokens_can_be_given_to_an_answer(bundle):
    stages = Stages(*[[[5], None]] * 2)
    entry, image = Entry(bundle, stages), ask(**IMAGE)
    assert entry.cached(image) is None and entry.media.cache.misses == 0
    assert seconds_of(entry, stages, image) == (1.0, 2.0)
    cached = entry.cached(image)
    entry.media.cache._kept.clear()  # evicted before it is used
    replied = Replied()
    entry.answer(image, replied, cached=cached)
    while stages.work:
        stages.work.pop(0)()
    summary = replied.sent[-1].summary
    assert (summary.seconds["preprocess"], summary.seconds["encoder"], stages.perceived) == (0.0, 0.0, 1)
    contrast = ask(options=SamplingOptions(vcd_alpha=1, seed=7), **IMAGE)
    by_url = ask(kind="image", url="https://example.org/x.png")
    assert [entry.cached(question) for question in (ask(), contrast, by_url)] == [None] * 3


def test_the_pixels_are_cached_where_tables_stay_on_the_gpu(bundle):
    bundle = Bundle(bundle.root, bundle.config, bundle.manifest | {"media_token_memory": "gpu"})
    stages = Stages(*[[[5], None]] * 2)
    entry = Entry(bundle, stages)
    assert [seconds_of(entry, stages, ask(**IMAGE)) for _ in range(2)] == [(1.0, 2.0), (0.0, 2.0)]
    assert entry.cached(ask(**IMAGE)) is None
    assert (stages.prepared, stages.perceived) == (1, 2)


def test_a_contrast_uses_noise_with_the_requests_seed(bundle):
    stages = Stages([[5], None])
    options = SamplingOptions(vcd_alpha=1, vcd_noise_step=400, seed=7)
    _, _, summary = run(bundle, stages, ask(kind="image", files=(b"x",), options=options))
    assert stages.noise == Noise(400, 7) and summary["usage"]["media_tokens"] == bundle.config.media_tokens
    _, prompt, seen, sampling = stages.asked[0]
    assert seen.rows == 2 * prompt.media_tokens and (sampling.vcd_alpha, sampling.vcd_beta) == (1.0, 0.1)
    run(bundle, stages := Stages([[5], None]), ask(kind="image", files=(b"x",), options=SamplingOptions(vcd_alpha=0)))
    assert stages.noise is None


def test_an_impossible_contrast_is_refused_before_the_media_is_decoded(bundle):
    options = SamplingOptions(vcd_alpha=1)
    for more in ({}, {"kind": "audio", "files": (b"x",)}):
        with pytest.raises(InvalidRequest, match="has no pixels"):
            run(bundle, stages := Stages(), ask(options=options, **more))
        assert not hasattr(stages, "noise")
    tensorrt = Bundle(bundle.root, bundle.config, bundle.manifest | {"engine": "tensorrt"})
    with pytest.raises(InvalidRequest, match="TensorRT and vLLM do not"):
        run(tensorrt, Stages(), ask(kind="image", files=(b"x",), options=options))


def test_a_cancelled_request_stops_the_language_model(bundle):
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


def test_a_caller_who_cannot_be_told_anything_troubles_nobody_else(bundle):
    """All answers arrive over one connection, whose reader must not meet what sending raises."""
    stages, replied = Stages([[1], [2]]), Replied()
    replied.send = replied.fail = lambda _: 1 / 0
    Entry(bundle, stages).answer(ask(), replied)
    stages.work.pop(0)()
    assert stages.generations[0].stopped


def test_the_entry_waits_for_a_stage_that_is_restarting(bundle, monkeypatch):
    monkeypatch.setattr(known_media, "POLL_SECONDS", 0.001)
    restarting = StageDied("Stub process 'encoder_0_0' is not healthy")
    stages = Stages([restarting], [restarting], [[5], None], perceptions=[restarting, restarting])
    _, ids, _ = run(bundle, stages, ask(kind="image", files=(b"x",)))
    assert ids == [5] and len({request_id for request_id, *_ in stages.asked}) == 3


def test_a_file_that_kills_its_stage_is_not_tried_again(bundle, monkeypatch):
    monkeypatch.setattr(known_media, "POLL_SECONDS", 0.001)
    deadly = [StageDied("Stub process 'preprocess_0_0' is not healthy") for _ in range(10)]
    stages = Stages(perceptions=deadly)
    with pytest.raises(StageRestarting):
        run(bundle, stages, ask(kind="video", files=(b"x",)))
    assert len(stages.perceptions) == 10 - known_media.DEATHS_ALLOWED - 1


def test_an_answer_that_has_begun_is_not_restarted(bundle):
    stages = Stages([[5], StageDied("not healthy")], [[6], None])
    with pytest.raises(StageRestarting):
        run(bundle, stages, ask())
    assert len(stages.asked) == 1


def test_media_by_url_is_disabled_by_default(bundle, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"media")
    question = ask(kind="video", url=f"file://{tmp_path}/clip.mp4")
    with pytest.raises(InvalidRequest, match="media_url is not taken by this server"):
        run(bundle, Stages(), question)
    stages = Stages([[5], None])
    sent = answer(Entry(bundle, stages, MediaGate(MediaPolicy(root=str(tmp_path)))), stages, question)
    assert stages.media.files == (b"media",) and "fetch" in sent[-1].summary.seconds


def test_the_stages_spans_belong_to_the_questions_trace(bundle):
    stages = Stages(*[[[5], None]] * 2)
    entry = Entry(bundle, stages)

    class Told(Span):
        def __init__(self) -> None:
            super().__init__("the trace of this question")
            self.parts = []

        def child(self, name, began, ended, attributes=None) -> None:
            self.parts.append((name, began, ended))

    first, second = Told(), Told()
    for span in (first, second):
        entry.answer(ask(**IMAGE), Replied(), span)
    assert first.parts == [("preprocess", 5.0, 6.0), ("encoder", 6.5, 8.5)] and second.parts == []
    assert stages.traces == ["the trace of this question"] * 2
