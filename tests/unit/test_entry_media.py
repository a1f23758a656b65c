"""The media of a question: tokens are cached, noise belongs to the request, and what is impossible is refused before decoding."""

import pytest

from entry_stand_ins import IMAGE, Replied, Stages, answer, ask, entry_bundle, run
from videollama_core.contrast import Noise
from videollama_core.engines.bundle import Bundle
from videollama_core.protocol.errors import (
    InvalidRequest,
    PromptTooLong,
)
from videollama_core.protocol.messages import SamplingOptions, as_conversation
from videollama_server.fetch.gate import MediaGate
from videollama_server.fetch.policy import MediaPolicy
from videollama_server.stages import entry
from videollama_server.stages.entry import Entry


@pytest.fixture
def bundle(tmp_path):
    return entry_bundle(tmp_path)


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


def test_media_by_url_is_disabled_by_default(bundle, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"media")
    question = ask(kind="video", url=f"file://{tmp_path}/clip.mp4")
    with pytest.raises(InvalidRequest, match="media_url is not taken by this server"):
        run(bundle, Stages(), question)
    stages = Stages([[5], None])
    sent = answer(Entry(bundle, stages, MediaGate(MediaPolicy(root=str(tmp_path)))), stages, question)
    assert stages.media.files == (b"media",) and "fetch" in sent[-1].summary.seconds
