"""`vl2 bench`: which requests it sends, and how it counts."""

import itertools

import numpy as np
import pytest

from conftest import MEDIA
from videollama_benchmarks.load import numbers, roofline
from videollama_benchmarks.load.drive import Load, Sample
from videollama_benchmarks.load.mix import as_new, find_media, make_requests, parse_mix
from videollama_converters.gpus import GPUS
from videollama_core.media.video import Segment, load_media
from videollama_core.protocol.errors import InvalidRequest

CLIP, PICTURE = MEDIA / "plain_96x64.mp4", MEDIA / "image_90x50.png"


def test_a_mix_draws_kinds_by_weight():
    assert parse_mix("video=3,text") == {"video": 3.0, "text": 1.0}
    for wrong in ("", "film=1", "video=-1", "video=nan", "video=inf", "video=x", "video=0"):
        with pytest.raises(InvalidRequest, match="--mix"):
            parse_mix(wrong)


@pytest.mark.parametrize("path", [CLIP, PICTURE], ids=lambda path: path.suffix)
def test_new_media_decode_to_the_same_content_from_other_bytes(path):
    kind = "video" if path == CLIP else "image"
    plain, first, second = path.read_bytes(), as_new(path.read_bytes(), 1), as_new(path.read_bytes(), 2)
    assert len({plain, first, second}) == 3
    frames = [load_media(kind, [content], Segment(None, None), 8).rgb for content in (plain, first, second)]
    for other in frames[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(frames[0], other, strict=True))


def test_requests_follow_the_mix_the_share_and_the_seed():
    media = find_media([CLIP, PICTURE], ["video", "image", "text"])
    weights = {"video": 2.0, "image": 1.0, "text": 1.0}
    asks = list(itertools.islice(make_requests(weights, media, 0.5, seed=3), 400))
    again = list(itertools.islice(make_requests(weights, media, 0.5, seed=3), 400))
    assert [(ask.kind, ask.repeated) for ask in asks] == [(ask.kind, ask.repeated) for ask in again]
    assert 160 < sum(ask.kind == "video" for ask in asks) < 240
    with_media = [ask for ask in asks if ask.media]
    assert 0.4 < sum(ask.repeated for ask in with_media) / len(with_media) < 0.6
    met: set[bytes] = set()
    for ask in with_media:
        assert (ask.media in met) == ask.repeated
        met.add(ask.media)
    assert not met & {ask.media for ask in again}  # of another run: no server has met it


def test_a_kind_without_a_file_is_an_error():
    with pytest.raises(InvalidRequest, match="--mix has audio, but"):
        find_media([CLIP], ["video", "audio"])


def samples(count: int, first: float, **more) -> list[Sample]:
    return [Sample("video", False, 0.0, first, first + 0.9, [0.1] * 9, 10, 8, 100, **more) for _ in range(count)]


def test_figures_of_a_level():
    stages = {"perception": 0.5, "preprocess": 0.2, "encoder": 0.25, "total": 1.0}
    measured = [*samples(8, 0.1, stages=stages), *samples(2, 0.6, stages=stages | {"encoder": 0.0})]
    measured.append(Sample("video", False, 0.0, error="Overloaded"))
    level = numbers.summarise(measured, 2.0, Load(2.0, 4), numbers.Target(first_text=0.5))
    assert level["requests"] == 11 and level["answered"] == 10 and level["errors"] == {"Overloaded": 1}
    assert level["answers_per_second"] == 5 and level["tokens_per_second"] == 50 and level["goodput_per_second"] == 4
    assert level["milliseconds"]["per_token"]["p50"] == pytest.approx(100)
    assert level["milliseconds"]["between_pieces"]["p99"] == pytest.approx(100) and level["frames_per_second"] == 40
    assert level["milliseconds"]["first_text"]["p50"] == 100 and level["milliseconds"]["first_text"]["p99"] == 600
    assert level["cache"] == {"with_media": 10, "repeated": 0, "hits": 2}
    assert level["stage_milliseconds"]["between_stages"]["p50"] == pytest.approx(50)


def test_the_knee_is_the_last_level_that_improved_throughput():
    levels = [{"goodput_per_second": rate} for rate in (10, 19, 19.5, 19.8, 5)]
    assert numbers.knee(levels) is levels[1]


def test_a_comparison_reports_ratios():
    before = numbers.summarise(samples(4, 0.1), 2.0, Load(2.0, 4), numbers.Target())
    after = numbers.summarise(samples(8, 0.2), 2.0, Load(2.0, 4), numbers.Target())
    rows = {name: ratio for _, name, *_, ratio in numbers.compare({"levels": [after]}, {"levels": [before]})}
    assert rows["answers_per_second"] == 2 and rows["first text p50 ms"] == 0.5
    other = numbers.summarise(samples(4, 0.1), 2.0, Load(2.0, 8), numbers.Target())
    assert not numbers.compare({"levels": [other]}, {"levels": [before]})


def test_a_roofline_is_the_work_over_the_peak():
    """A repeated video skips the encoder, and an answer's steps are bound by the bytes they read."""
    name, card = "VideoLLaMA2.1-7B-16F", GPUS["H200"]
    level = numbers.summarise(samples(10, 0.1), 1.0, Load(1.0, 8), numbers.Target())
    fresh = roofline.bound(name, "H200", {**level, "cache": {"with_media": 10, "hits": 0}})
    again = roofline.bound(name, "H200", {**level, "cache": {"with_media": 10, "hits": 10}})
    saved = 1 / fresh["answers_per_second"] - 1 / again["answers_per_second"]
    assert saved == pytest.approx(roofline.encoder_work(name) / (card.teraflops * 1e12))
    assert fresh["share"] == pytest.approx(10 / fresh["answers_per_second"])
    weights = roofline.step_bytes(name, 0, 0)
    assert 12e9 < weights < 16e9  # 7 B parameters of two bytes, without the embedding
    assert roofline.step_seconds(name, 1, 0, card) == pytest.approx(weights / (card.bandwidth * 1e12))
