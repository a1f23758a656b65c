"""Media -> frames: which frames, from which containers, and what is refused with the reason."""

import importlib.util
import io
import json
import math
import subprocess
import sys
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from conftest import GOLDEN, MEDIA, decode_all
from video_set import numbered_video
from videollama_core.media.video import (
    Segment,
    candidate_range,
    choose_frames,
    choose_frames_per_second,
    choose_in_segment,
    load_media,
)
from videollama_core.media.video_decoders import DECODER_VARIABLE
from videollama_core.protocol import limits
from videollama_core.protocol.errors import BadSegment, InvalidRequest, UnreadableMedia
from videollama_server.installation import Installation, stage_environment

TABLES = json.loads((GOLDEN / "preprocess" / "frame_sampling.json").read_text("utf-8"))


def test_uniform_sampling_equals_the_reference():
    assert len(TABLES["uniform"]) > 200
    for duration, num_frames, indices in TABLES["uniform"]:
        assert choose_frames(duration, num_frames).tolist() == indices, (duration, num_frames)


def test_sampling_per_second_equals_the_reference():
    for duration, rate, indices in TABLES["per_second"]:
        if isinstance(indices, list):
            assert choose_frames_per_second(duration, rate).tolist() == indices, (duration, rate)
        else:
            with pytest.raises(UnreadableMedia):
                choose_frames_per_second(duration, rate)


def test_segments_equal_the_reference():
    """Where the reference raises, BadSegment is raised here."""
    refused = 0
    for row in TABLES["segments"]:
        segment = Segment(row["s"], row["e"])
        if "error" in row or not isinstance(row["indices"], list):
            refused += 1
            with pytest.raises(BadSegment):
                choose_in_segment(row["n_frames"], row["fps"], segment, row["num_frames"])
        else:
            indices = choose_in_segment(row["n_frames"], row["fps"], segment, row["num_frames"])
            assert indices.tolist() == row["indices"], row
    assert refused


def test_no_number_of_frames_means_one_a_second():
    for row in TABLES["no_num_frames"]:
        indices = choose_in_segment(row["n_frames"], row["fps"], Segment(), row["num_frames"])
        assert indices.tolist() == row["indices"]


@pytest.mark.parametrize("bounds", [(math.nan, None), (None, math.inf)])
def test_a_bound_must_be_a_number(bounds):
    with pytest.raises(BadSegment, match="finite"):
        Segment(*bounds)


@pytest.mark.parametrize("bounds", [(3.0, 1.0), (-1.0, 2.0), (None, -0.5)])
def test_the_public_entry_refuses_segments_that_the_reference_corrects(bounds):
    with pytest.raises(BadSegment):
        Segment(*bounds).refuse_reversed()
    Segment(1.0, 1.0).refuse_reversed()


def test_a_segment_beyond_the_end_names_the_video_length():
    with pytest.raises(BadSegment, match=r"no frame lies between 9 s and its end: .* 40 frames in 4\.00 s"):
        candidate_range(40, 10.0, Segment(9.0, None))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
@pytest.mark.parametrize("num_frames", [1, 8, 16])
def test_the_frames_of_any_container_are_the_chosen_ones(container, num_frames, video_decoder, request):
    if (video_decoder, container) == ("decord", "mpegts"):
        request.applymarker(pytest.mark.xfail(strict=True, reason="decord does not reach the end of MPEG-TS"))
    frames = load_media("video", [numbered_video(50, container=container)], Segment(), num_frames)
    assert frames.index.tolist() == choose_frames(50, num_frames).tolist()
    assert [round(picture.mean() / 4) for picture in frames.rgb] == frames.index.tolist()


def avi_with_dropped_frames(count: int = 20) -> bytes:
    """An AVI that names frames 5 to 7 in its index without holding them, as recorders write what they drop."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", "avi") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in set(range(count)) - {5, 6, 7}:
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, np.uint8), "rgb24")
            picture.pts = number
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def test_an_avi_with_dropped_frames_is_whole(video_decoder):
    data = avi_with_dropped_frames()
    frames = load_media("video", [data], Segment(), 8)
    assert frames.index.tolist() == choose_frames(17, 8).tolist()
    assert [round(picture.mean() / 10) for picture in frames.rgb] == [i if i < 5 else i + 3 for i in frames.index]
    with pytest.raises(UnreadableMedia, match="cut off"):
        load_media("video", [data[:-1000]], Segment(), 8)


def test_the_time_of_a_frame_is_its_position_in_the_video(video_decoder):
    frames = load_media("video", [(MEDIA / "plain_96x64.mp4").read_bytes()], Segment(), 8)
    assert np.allclose(frames.time, frames.index / 10.0, atol=1e-3)


def test_the_rotation_tag_is_applied(video_decoder):
    plain = decode_all(MEDIA / "plain_96x64.mp4")
    rotated = load_media("video", [(MEDIA / "rotated90_96x64.mp4").read_bytes()], Segment(), 8)
    assert rotated.rgb[0].shape == (96, 64, 3)
    assert any(np.array_equal(rotated.rgb[0], np.rot90(plain[rotated.index[0]], turns)) for turns in (1, 3))


def test_short_gif_is_padded_with_black():
    frames = load_media("video", [(MEDIA / "anim5_46x60.gif").read_bytes()], Segment(), 8)
    assert frames.index.tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert not frames.rgb[-1].any() and frames.rgb[0].any()


def test_arrays_are_used_as_they_are_and_cut_at_32():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((40, 6, 4, 3), np.uint8))
    assert len(load_media("frames", [buffer.getvalue()], Segment(), 8).rgb) == 32
    buffer = io.BytesIO()
    np.save(buffer, np.full((3, 6, 4, 3), 9, np.uint8))
    frames = load_media("frames", [buffer.getvalue()], Segment(), 8)
    assert len(frames.rgb) == 8 and frames.rgb[2].any() and not frames.rgb[3].any()
    assert frames.rgb[3].shape == (4, 6, 3)  # the reference swaps the sides of its black frames


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


VIDEO = (MEDIA / "sample_demo_1.mp4").read_bytes()
INDEX_FIRST = numbered_video(60, movflags="faststart")
BAD_VIDEOS = {
    "empty": (b"", "0 bytes"),
    "text": (b"this is not a video at all, only some text\n" * 20, "cannot|not a video"),
    "random": (np.random.default_rng(0).bytes(20000), "not a video"),
    "cut before the index": (cut(VIDEO, 0.5), "not a video|cut off|damaged"),
    "cut within the index": (INDEX_FIRST[: INDEX_FIRST.index(b"stsd")], "cut off|not a video"),
    "cut behind the index": (cut(INDEX_FIRST, 0.6), "cut off|damaged|not a video"),
    "whole, of a codec that nobody knows": (
        VIDEO.replace(b"avc1", b"zzzz") + b"more behind it",
        "codec.*not supported",
    ),
    "sound only": ((MEDIA / "tone_16k_mono_4s.wav").read_bytes(), "no video stream.*audio track"),
    "picture": ((MEDIA / "image_90x50.png").read_bytes(), "not a video"),
    "playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not a video"),
    "concat script": (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_a_file_that_is_not_a_video_is_refused_with_the_reason(name, video_decoder):
    data, reason = BAD_VIDEOS[name]
    with pytest.raises(UnreadableMedia, match=f"(?is){reason}"):
        load_media("video", [data], Segment(), 8)


def test_flipped_bytes_never_hang_or_crash(video_decoder):
    """Each damaged copy gives frames or a typed error; libavcodec conceals what it can."""
    original = np.frombuffer(numbered_video(30), np.uint8)
    for seed in range(30):
        random = np.random.default_rng(seed)
        damaged = original.copy()
        places = random.integers(0, len(damaged), max(1, len(damaged) // 500))
        damaged[places] = random.integers(0, 256, len(places))
        try:
            frames = load_media("video", [damaged.tobytes()], Segment(), 8)
        except (UnreadableMedia, BadSegment):
            continue
        assert len(frames.rgb) == 8


def test_a_decoder_that_is_unknown_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(InvalidRequest, match="'cinema' is unknown; choose one of pyav, decord"):
        load_media("video", [VIDEO], decoder="cinema")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="decord was requested, but is not installed; install it .*--decoder"):
        load_media("video", [VIDEO], decoder="decord")


def test_decoding_has_a_time_limit(monkeypatch):
    monkeypatch.setattr(limits, "DECODE_SECONDS", replace(limits.DECODE_SECONDS, value=-1))
    with pytest.raises(UnreadableMedia, match="to decode"):
        load_media("video", [VIDEO], Segment(), 8)


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(limits, "PICTURE_PIXELS", replace(limits.PICTURE_PIXELS, value=64 * 40))
    for kind, data in (("video", numbered_video(3)), ("image", (MEDIA / "image_90x50.png").read_bytes())):
        with pytest.raises(UnreadableMedia, match="the limit is 2560"):
            load_media(kind, [data], Segment(), 8)


@pytest.mark.parametrize(
    ("kind", "files", "reason"),
    [
        ("video", [], "at least one"),
        ("video", [VIDEO, VIDEO], "exactly one"),
        ("hologram", [VIDEO], "media_kind"),
        ("image", [b"\x89PNG\r\n\x1a\nbroken"], "not a picture|damaged"),
        ("image", [cut((MEDIA / "sora.png").read_bytes(), 0.5)], "damaged|cut off"),
        ("frames", [b"\x93NUMPY\x01\x00broken"], "npy"),
        ("folder", [b"no picture"], "not a picture"),
    ],
)
def test_bad_media_is_refused_with_the_reason(kind, files, reason):
    with pytest.raises(InvalidRequest, match=f"(?s){reason}"):
        load_media(kind, files, Segment(), 8)


def test_raw_frames_must_be_uint8_pictures():
    for array in (np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        with pytest.raises(UnreadableMedia, match="expected uint8"):
            load_media("frames", [buffer.getvalue()], Segment(), 8)


def test_pickled_arrays_are_never_opened(tmp_path):
    """np.load would run code from the file, which is untrusted."""
    mark = tmp_path / "mark"
    script = f"import numpy, os, io\nclass E:\n  def __reduce__(s): return (os.mkdir, ({str(mark)!r},))\nb = io.BytesIO(); numpy.save(b, numpy.array([E()], object)); open({str(tmp_path / 'x')!r}, 'wb').write(b.getvalue())"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(UnreadableMedia):
        load_media("frames", [(tmp_path / "x").read_bytes()], Segment(), 8)
    assert not mark.exists()


def test_a_segment_needs_timestamps():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with pytest.raises(BadSegment):
        load_media("image", [buffer.getvalue()], Segment(1.0, None), 8)


def test_the_stages_receive_the_chosen_decoder(tmp_path):
    installation = Installation(tmp_path, tmp_path, ())
    assert stage_environment(installation, "localhost:1")[DECODER_VARIABLE] == "pyav"
    assert stage_environment(installation, "localhost:1", decoder="decord")[DECODER_VARIABLE] == "decord"
