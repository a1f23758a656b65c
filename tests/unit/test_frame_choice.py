"""The number of frames of a video, and keyframes in place of exact ones: what each gives, and where each is refused."""

import numpy as np
import pytest

from conftest import CHAT_VARIANTS, MEDIA, checkpoint
from video_set import count_packets, numbered_video
from videollama_client.wire import build_question
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.media.decoding.video_file import decode_video
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment, load_media
from videollama_core.protocol.errors import BadSegment, InvalidRequest
from videollama_server.answers.known_media import KnownMedia, Media
from videollama_server.stages.entry import Question

CONFIG = read_model_config(checkpoint(CHAT_VARIANTS[0]))  # of 8 frames
KEYS = Segment(sampling="keyframes")


def values(frames) -> list[int]:
    """The numbers that the pictures encode."""
    return [round(picture.mean() / 4) for picture in frames.rgb]


def test_each_frame_is_replaced_by_the_nearest_keyframe():
    video = numbered_video(50, g="10", sc_threshold="0")
    exact, keys = load_media("video", [video], Segment(), 8), load_media("video", [video], KEYS, 8)
    assert exact.index.tolist() == [3, 9, 15, 21, 28, 34, 40, 46]
    assert keys.index.tolist() == [0, 10, 10, 20, 30, 30, 40, 50 - 10]
    assert values(keys) == keys.index.tolist()
    assert np.allclose(keys.time, keys.index / 10)


def test_only_keyframes_between_start_and_end_count():
    video = numbered_video(50, g="10", sc_threshold="0")
    between = load_media("video", [video], Segment(1.3, 2.9, sampling="keyframes"), 4)
    assert set(between.index.tolist()) == {20}
    none = load_media("video", [video], Segment(1.3, 1.8, sampling="keyframes"), 4)
    assert none.index.tolist() == load_media("video", [video], Segment(1.3, 1.8), 4).index.tolist()


@pytest.mark.parametrize("container", ["avi", "h264"])
def test_frames_are_exact_where_a_file_does_not_mark_its_keyframes(container):
    video = numbered_video(50, container=container, g="10")
    assert (
        load_media("video", [video], KEYS, 8).index.tolist()
        == load_media("video", [video], Segment(), 8).index.tolist()
    )


def test_keyframes_are_the_only_packets_that_are_decoded(monkeypatch):
    decoded = count_packets(monkeypatch)
    frames = decode_video(numbered_video(50, g="10", sc_threshold="0"), KEYS, 8)
    assert decoded == sorted(set(frames.index.tolist())) == [0, 10, 20, 30, 40]


def test_the_number_of_frames_may_exceed_the_checkpoints_up_to_32():
    video = (MEDIA / "plain_96x64.mp4").read_bytes()
    for number in (8, 12, 32):
        assert len(prepare("video", [video], Segment(num_frames=number), CONFIG).frames) == number
    for number in (1, 7):
        with pytest.raises(InvalidRequest, match=f"num_frames is {number}; this checkpoint takes 8, .* to 32"):
            prepare("video", [video], Segment(num_frames=number), CONFIG)
    assert CONFIG.tokens_of("video", 16) > CONFIG.tokens_of("video") == CONFIG.tokens_of("video", 8)


@pytest.mark.parametrize(("number", "said"), [(0, "at least 1"), (-3, "at least 1"), (33, "the limit is 32")])
def test_a_number_of_frames_beyond_the_limit_is_refused(number, said):
    with pytest.raises(InvalidRequest, match=said):
        Segment(num_frames=number)


@pytest.mark.parametrize("kind", ["image", "frames", "audio"])
def test_media_without_frames_take_neither_option(kind):
    for segment in (Segment(num_frames=8), KEYS):
        with pytest.raises(InvalidRequest, match="needs a video"):
            Question([{"role": "user", "content": "?"}], None, kind, (b"x",), segment)
    with pytest.raises(InvalidRequest, match="sampling needs a video file, not kind folder"):
        KEYS.refuse_for("folder")
    Segment(num_frames=8).refuse_for("folder")
    with pytest.raises(InvalidRequest, match="num_frames or sampling came without a video"):
        Question([{"role": "user", "content": "?"}], None, segment=KEYS)
    with pytest.raises(InvalidRequest, match="sampling is 'often'; it takes exact or keyframes"):
        Segment(sampling="often")
    with pytest.raises(BadSegment):
        Segment(1.0).refuse_for("image")


class _Stages:
    def __init__(self) -> None:
        self.asked = []

    def perceive(self, media, noise, is_cancelled):
        self.asked.append(media)
        return _Perceived()


class _Perceived:
    nbytes, from_cache = 8, None


SEGMENTS = [Segment(), Segment(num_frames=16), Segment(num_frames=32), KEYS, Segment(sampling="exact")]
APART = {
    "number and sampling": [Media("video", (b"x",), segment) for segment in SEGMENTS],
    # One of a key's files may take over the process that decodes its next: what that gives is for this key alone.
    "who sent them": [Media("video", (b"x",), Segment(), caller) for caller in ("one", "two", "")],
}


@pytest.mark.parametrize("what", APART)
def test_the_options_are_part_of_the_cache_key(what):
    class Bundle:
        identity, keeps_media_tokens_on_gpu = b"x", False

    stages = _Stages()
    known = KnownMedia(Bundle(), stages, 2**20)
    for media in APART[what] * 2:
        known.perceive(media, None, lambda: False)
    assert stages.asked == APART[what]  # once each


def tensors(request) -> dict[str, tuple[str, bytes]]:
    pairs = zip(request.inputs, request.raw_input_contents, strict=True)
    return {tensor.name: (tensor.datatype, content) for tensor, content in pairs}


def test_the_client_sends_both_options():
    sent = tensors(build_question("?", None, {"video": b"x", "num_frames": 16, "sampling": "keyframes"}))
    assert sent["num_frames"] == ("INT32", b"\x10\0\0\0") and sent["sampling"] == ("BYTES", b"\x09\0\0\0keyframes")
    assert not {"num_frames", "sampling"} & set(tensors(build_question("?", None, {"video": b"x"})))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_frames": 16},
        {"sampling": "exact"},
        {"image": b"x", "num_frames": 16},
        {"video": [b"x"], "sampling": "keyframes"},
        {"video": b"x", "num_frames": 16.0},
        {"video": b"x", "num_frames": 33},
        {"video": b"x", "num_frames": True},
        {"video": b"x", "sampling": "often"},
        {"video": b"x", "sampling": ["exact"]},
    ],
)
def test_the_client_refuses_what_the_server_refuses(arguments):
    with pytest.raises(InvalidRequest):
        build_question("?", None, arguments)
