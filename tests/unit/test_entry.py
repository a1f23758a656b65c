"""The life of one question, with small stand-ins for the other stages."""

import pytest

from entry_stand_ins import IMAGE, Replied, Stages, answer, ask, entry_bundle, run
from videollama_core.protocol.errors import (
    Cancelled,
    PromptTooLong,
    StageDied,
    StageFailed,
    StageRestarting,
)
from videollama_core.protocol.messages import SamplingOptions
from videollama_core.telemetry.traces import Span
from videollama_server.answers import known_media
from videollama_server.answers.answering import DEATHS_ALLOWED
from videollama_server.stages import entry as entry_module
from videollama_server.stages.entry import Entry


@pytest.fixture
def bundle(tmp_path):
    return entry_bundle(tmp_path)


def test_an_answer_ends_at_an_end_id_or_at_its_length_limit(bundle):
    text, ids, summary = run(bundle, Stages([[5], [6], [999], None]), ask())
    assert ids == [5, 6, 999] and summary["finish_reason"] == "stop" and text
    assert summary["usage"]["completion_tokens"] == 3
    _, _, summary = run(bundle, Stages([[5], [6], None]), ask(options=SamplingOptions(max_new_tokens=2)))
    assert summary["finish_reason"] == "length"


def test_the_language_models_cached_tokens_are_in_the_summary(bundle):
    for script, cached in (([3, [5], [6], None], 3), ([[5], None], 0)):
        assert run(bundle, Stages(script), ask())[2]["usage"]["cached_tokens"] == cached


def test_the_prompt_of_an_equal_short_question_is_made_once(bundle, monkeypatch):
    made, build = [], entry_module.build_prompt
    monkeypatch.setattr(entry_module, "build_prompt", lambda *words: made.append(words) or build(*words))
    long = "Who? " * 1000
    questions = [ask(), ask(**IMAGE), ask("What?"), ask(), ask(**IMAGE)]
    stages = Stages(*[[[5], None]] * len(questions))
    answering = Entry(bundle, stages)
    for question in questions:
        answer(answering, stages, question)
    assert len(made) == 3
    prompts = [prompt.input_ids.tolist() for _, prompt, _, _ in stages.asked]
    assert prompts[:2] == prompts[3:] and prompts[0] != prompts[2]
    for _ in range(2):
        with pytest.raises(PromptTooLong):
            answer(answering, stages, ask(long))
    assert len(made) == 5


def test_tokens_are_limited_to_the_remaining_context(bundle):
    stages = Stages([[5], None])
    run(bundle, stages, ask())
    _, prompt, _, sampling = stages.asked[0]
    assert sampling.max_new_tokens == 200 - len(prompt.input_ids)
    with pytest.raises(PromptTooLong):
        run(bundle, Stages(), ask("word " * 300))


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
    monkeypatch.setattr(known_media, "RETRY_SECONDS", 0.001)
    restarting = StageDied("Stub process 'encoder_0_0' is not healthy")
    stages = Stages([restarting], [restarting], [[5], None], perceptions=[restarting, restarting])
    _, ids, _ = run(bundle, stages, ask(kind="image", files=(b"x",)))
    assert ids == [5] and len({request_id for request_id, *_ in stages.asked}) == 3


def test_a_file_that_kills_its_stage_is_not_tried_again(bundle, monkeypatch):
    monkeypatch.setattr(known_media, "RETRY_SECONDS", 0.001)
    deadly = [StageDied("Stub process 'preprocess_0_0' is not healthy") for _ in range(10)]
    stages = Stages(perceptions=deadly)
    with pytest.raises(StageRestarting):
        run(bundle, stages, ask(kind="video", files=(b"x",)))
    assert len(stages.perceptions) == 10 - known_media.DEATHS_ALLOWED - 1


def test_an_answer_that_has_begun_is_not_restarted(bundle):
    stages = Stages([[5], StageDied("not healthy")], [[6], None])
    with pytest.raises(StageFailed, match="not healthy") as raised:
        run(bundle, stages, ask())
    assert len(stages.asked) == 1 and type(raised.value) is StageFailed  # the client must not send it again either


def test_a_question_that_kills_the_language_model_is_not_asked_for_ever(bundle):
    stages = Stages(*[[StageDied("died")] for _ in range(10)])
    with pytest.raises(StageFailed, match="died") as raised:
        run(bundle, stages, ask())
    assert len(stages.asked) == DEATHS_ALLOWED + 1 and type(raised.value) is StageFailed


def test_the_stages_spans_belong_to_the_questions_trace(bundle):
    stages = Stages(*[[[5], None]] * 2)
    entry = Entry(bundle, stages)

    class RecordingSpan(Span):
        def __init__(self) -> None:
            super().__init__("the trace of this question")
            self.parts = []

        def child(self, name, began, ended, attributes=None) -> None:
            self.parts.append((name, began, ended))

    first, second = RecordingSpan(), RecordingSpan()
    for span in (first, second):
        entry.answer(ask(**IMAGE), Replied(), span)
    assert first.parts == [("preprocess", 5.0, 6.0), ("encoder", 6.5, 8.5)] and second.parts == []
    assert stages.traces == ["the trace of this question"] * 2
