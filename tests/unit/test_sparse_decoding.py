"""Sparse decoding gives what decoding everything gives: the same pixels, frames, times and errors."""

import struct

import numpy as np
import pytest

from conftest import MEDIA
from video_set import HARMED, MADE, count_packets, write
from videollama_core.media.decoding import frame_table, video_file
from videollama_core.media.decoding.container import open_container, open_unseen, video_stream
from videollama_core.media.decoding.frame_index import FrameIndex
from videollama_core.media.decoding.video_file import decode_video
from videollama_core.media.video import Segment
from videollama_core.protocol.errors import VideoLlamaError

REAL = sorted(path for path in MEDIA.rglob("*.*") if path.suffix in (".mp4", ".mkv", ".webm"))
FAST = {
    *("h264_pyramid.mp4", "h264_open.ts", "h264_refresh.mp4", "h264_pyramid.avi", "h264_no_b.h264", "h264_fields.mp4"),
    *("hevc_open.mkv", "hevc_layers.mp4", "vp9_hidden.webm", "vp8_hidden.webm", "av1.mkv", "mpeg2video.ts"),
    *("h264_fragmented.mp4", "h264_turned.mp4", "h264_variable.mkv", "edited_5_h264_pyramid.mp4", "twice.ts"),
    *("flipped_1.h264_no_b.mkv", "flipped_2.h264_pyramid.ts", "hole_30_h264_pyramid.mp4", "late_20.ts", "cut_vp9.webm"),
}
# Whole, with times to be believed, of a codec with one picture a packet: these never fall back.
SOUND = {
    made.name
    for made in MADE
    if made.name.startswith(("h264", "hevc", "vp9", "av1")) and made.name.endswith(("mp4", "mov", "mkv", "ts", "webm"))
}
# Whose table proves itself: closed groups, and a time of decoding that runs with the time of showing.
BY_TABLE = {
    "h264_pyramid.mp4",
    "h264_no_b.mov",
    "h264_29_97.mp4",
    "h264_turned.mp4",
    "hevc_pyramid.mp4",
    "vp9.mp4",
    "av1.mp4",
}
FILES = [
    pytest.param(made, marks=[] if made.name in FAST else [pytest.mark.slow], id=made.name) for made in (*MADE, *HARMED)
]
QUESTIONS = ((1, Segment()), (3, Segment()), (8, Segment()), (16, Segment()), (None, Segment()), (8, Segment(0.5, 1.0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


def answer(data: bytes, num_frames: int | None, segment: Segment, sparse: bool) -> object:
    try:
        frames = decode_video(data, segment, num_frames, sparse=sparse)
    except VideoLlamaError as error:
        return error.kind, str(error)
    return (
        [picture.tobytes() for picture in frames.rgb],
        frames.index.tolist(),
        [f"{time:.17g}" for time in frames.time],
    )


def test_the_video_set_has_its_documented_size():
    assert len(MADE) >= 60 and len(HARMED) >= 30 and len(SOUND) >= 40
    names = [made.name for made in (*MADE, *HARMED)]
    assert len(set(names)) == len(names) and set(names) >= FAST


@pytest.mark.parametrize("made", FILES)
def test_sparse_and_full_decoding_agree(made, folder, monkeypatch):
    data = write(folder, made)
    plain = [answer(data, *question, sparse=False) for question in QUESTIONS]
    if made.name in SOUND:
        monkeypatch.setattr(video_file, "decode_sequentially", None)
    for question, wanted in zip(QUESTIONS, plain, strict=True):
        assert answer(data, *question, sparse=True) == wanted, question


@pytest.mark.parametrize("made", [file for file in FILES if file.id.endswith((".mp4", ".mov"))])
def test_decoding_by_the_table_of_an_mp4_agrees(made, folder, monkeypatch):
    """Used here for short files too, where it would not pay."""
    data = write(folder, made)
    plain = [answer(data, *question, sparse=False) for question in QUESTIONS]
    monkeypatch.setattr(frame_table, "LEAST", 1)
    monkeypatch.setattr(frame_table, "SHARE", 1.0)
    if made.name in BY_TABLE:
        monkeypatch.setattr(video_file, "read_index", None)
    for question, wanted in zip(QUESTIONS, plain, strict=True):
        assert answer(data, *question, sparse=True) == wanted, question


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_sparse_and_full_decoding_agree_on_the_golden_media(path):
    data = path.read_bytes()
    for question in ((8, Segment()), (16, Segment(0.3, 2.0))):
        assert answer(data, *question, sparse=True) == answer(data, *question, sparse=False), question


@pytest.mark.parametrize("made", [file for file in FILES if file.id.endswith((".mp4", ".mov"))])
def test_an_mp4_opened_without_probing_reports_the_same(made, folder):
    told = []
    for open_file in (open_container, open_unseen):
        try:
            with open_file(write(folder, made)) as container:
                stream = video_stream(container)
                context = stream.codec_context
                size = context.width, context.height
                told.append((size, stream.average_rate, stream.guessed_rate, stream.frames, stream.start_time))
        except VideoLlamaError as error:
            told.append(str(error))
    assert told[0] == told[1]


def test_a_false_picture_size_in_the_header_is_not_trusted(folder):
    data = write(folder, next(made for made in MADE if made.name == "h264_pyramid.mp4"))
    place = data.index(b"avc1", data.index(b"stsd")) + 28  # width and height in the sample entry
    lying = data[:place] + struct.pack(">HH", 64, 48) + data[place + 4 :]
    with open_unseen(lying) as container:
        assert video_stream(container).codec_context.width == 64
    assert answer(lying, 8, Segment(), sparse=True) == answer(data, 8, Segment(), sparse=False)


def test_a_late_frame_decodes_one_group_of_pictures(folder, monkeypatch):
    """Of 60 frames in groups of at most 12, the last one needs at most 12 packets, not the 59 before it."""
    decoded = count_packets(monkeypatch)
    data = write(folder, next(made for made in MADE if made.name == "h264_no_b.mp4"))
    frames = decode_video(data, Segment(2.39, None), 1)
    assert frames.index.tolist() == [59] and decoded[-1] == 59 and len(decoded) <= 12


def table(pts: list[int], keys: tuple[int, ...] = (0,)) -> FrameIndex:
    number = len(pts)
    key = np.isin(np.arange(number), keys)
    return FrameIndex(np.array(pts), np.arange(number), np.ones(number, int), key, np.ones(number, bool), whole=True)


def test_an_index_must_be_verified():
    good = table([0, 2, 1, 3])
    assert good.is_sound("matroska,webm", "h264")
    assert not good.is_sound("avi", "h264") and not good.is_sound("matroska,webm", "vp8")
    for pts, keys in (([0, 2, 2, 3], (0,)), ([1, 2, 0, 3], (0,)), ([0, 2, 1, 3], (1,)), ([], ())):
        assert not table(pts, keys).is_sound("matroska,webm", "h264"), pts


def test_a_leading_picture_is_decoded_with_the_previous_group():
    open_group = table([0, 1, 5, 3, 4, 6], keys=(0, 2))
    assert [open_group.start_of(packet) for packet in range(6)] == [0, 0, 2, 0, 0, 2]
    assert open_group.packets_of(np.array([2, 3, 4])).tolist() == [3, 4, 2]
