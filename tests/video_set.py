"""More than a hundred video files of several groups of pictures, as they are found or worse: for both ways of decoding."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from made_files import Made
from videollama_core.media.decoding import sparse

FRAMES = 60
QUIET = "log-level=none:"


def x264(words: str) -> dict[str, str]:
    return {"crf": "24", "preset": "veryfast", "x264-params": words}


def x265(words: str) -> dict[str, str]:
    return {"preset": "ultrafast", "x265-params": QUIET + words}


H264 = {
    "no_b": "keyint=12:bframes=0",
    "pyramid": "keyint=16:bframes=3:b-pyramid=normal:scenecut=0",
    "open": "open-gop=1:keyint=10:bframes=3:scenecut=0",
    "refresh": "intra-refresh=1:keyint=12",
    "one_group": "keyint=250:bframes=2",
    "key_only": "keyint=1",
    "fields": "tff=1:keyint=12:bframes=2",
    "slices": "keyint=14:slices=3",
}
HEVC = {
    "no_b": "keyint=12:bframes=0:no-open-gop=1",
    "pyramid": "keyint=16:bframes=4:b-pyramid=1:no-open-gop=1:scenecut=0",
    "open": "keyint=10:min-keyint=10:open-gop=1:bframes=3:scenecut=0",
    "layers": "keyint=16:bframes=4:temporal-layers=3:no-open-gop=1",
    "one_group": "keyint=250:bframes=3",
}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
H264_CONTAINERS = ("mp4", "mov", "mkv", "flv", "ts", "avi", "nut", "h264")
VP9 = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
VP9_HIDDEN = {"g": "20", "deadline": "good", "cpu-used": "5", "lag-in-frames": "16", "auto-alt-ref": "1"}


def _made() -> Iterator[Made]:
    plain = Made("", frames=FRAMES)
    for kind, words in H264.items():
        for suffix in H264_CONTAINERS if kind in ("pyramid", "open", "no_b") else ("mp4", "ts"):
            yield replace(plain, name=f"h264_{kind}.{suffix}", options=x264(words))
    yield replace(plain, name="h264_fragmented.mp4", options=x264(H264["pyramid"]), container=FRAGMENTED)
    yield replace(plain, name="h264_baseline.mp4", options={**x264("keyint=12"), "profile": "baseline"})
    yield replace(plain, name="h264_10.mkv", options=x264(H264["pyramid"]), pixels="yuv420p10le")
    yield replace(plain, name="h264_turned.mp4", options=x264(H264["pyramid"]), turn=90)
    yield replace(plain, name="h264_29_97.mp4", options=x264(H264["pyramid"]), rate=Fraction(30000, 1001))
    for suffix in ("mp4", "mkv", "ts"):
        ticks = {"ticks": lambda number: number * (number + 3) // 2}
        yield replace(plain, name=f"h264_variable.{suffix}", options=x264(H264["pyramid"]), **ticks)
    for kind, words in HEVC.items():
        for suffix in ("mp4", "mkv", "ts"):
            yield replace(plain, name=f"hevc_{kind}.{suffix}", codec="libx265", options=x265(words))
    for suffix in ("webm", "mkv", "mp4"):
        yield replace(plain, name=f"vp9.{suffix}", codec="libvpx-vp9", options=VP9)
        yield replace(plain, name=f"vp9_hidden.{suffix}", codec="libvpx-vp9", options=VP9_HIDDEN)
        yield replace(plain, name=f"av1.{suffix}", codec="libsvtav1", options={"preset": "10", "g": "16"})
    yield replace(plain, name="vp8.webm", codec="libvpx", options=VP9)
    yield replace(plain, name="vp8_hidden.webm", codec="libvpx", options=VP9_HIDDEN)
    for codec, bf in (("mpeg4", "2"), ("mpeg2video", "2"), ("mpeg1video", "0")):
        for suffix in ("mkv", "ts", "avi") if codec != "mpeg1video" else ("mpg",):
            yield replace(plain, name=f"{codec}.{suffix}", codec=codec, options={"g": "12", "bf": bf})
    yield replace(plain, name="mjpeg.mov", codec="mjpeg", pixels="yuvj420p")
    yield replace(plain, name="prores.mov", codec="prores_ks", pixels="yuv422p10le", frames=24)
    yield replace(plain, name="ffv1.mkv", codec="ffv1", options={"g": "8"})


@dataclass(frozen=True)
class Harmed:
    """A file of the list above, changed afterwards."""

    name: str
    source: str
    harm: str  # name of a function below
    number: int = 0


def flipped(data: bytes, seed: int) -> bytes:
    """One byte in 50 to 5,000 is another."""
    random = np.random.default_rng(seed)
    damaged = np.frombuffer(data, np.uint8).copy()
    places = random.integers(0, len(damaged), max(1, len(damaged) // (50, 500, 5000)[seed % 3]))
    damaged[places] = random.integers(0, 256, len(places))
    return damaged.tobytes()


def hole(data: bytes, percent: int) -> bytes:
    """Zeros in place of a tenth, from so much on."""
    begin, length = len(data) * percent // 100, len(data) // 10
    return data[:begin] + bytes(length) + data[begin + length :]


def cut(data: bytes, percent: int) -> bytes:
    return data[: len(data) * percent // 100]


def late(data: bytes, packets: int) -> bytes:
    """A transport stream that is joined in the middle: without its first packets, but for its two tables."""
    return data[: 3 * 188] + data[packets * 188 :]


def twice(data: bytes, _: int) -> bytes:
    """Two transport streams, one behind the other: all times come again."""
    return data + data


def edited(data: bytes, frames: int) -> bytes:
    """An edit list that begins so many frames later, and ends as many before the end."""
    at = data.index(b"elst") + 12  # version and flags, number of entries
    duration, media_time = struct.unpack(">Ii", data[at : at + 8])
    ticks = 512  # of a frame: 25 a second in 12800 ticks
    shown = struct.pack(">Ii", duration - 2 * frames * 40, media_time + frames * ticks)
    return data[:at] + shown + data[at + 8 :]


HARMED = (
    *(
        Harmed(f"flipped_{seed}.{suffix}", source, "flipped", seed)
        for source in (
            "h264_pyramid.mp4",
            "h264_no_b.mkv",
            "h264_pyramid.ts",
            "hevc_pyramid.mkv",
            "vp9.webm",
            "av1.mkv",
        )
        for suffix in [f"{source.partition('.')[0]}.{source.partition('.')[2]}"]
        for seed in range(3)
    ),
    *(
        Harmed(f"hole_{percent}_{source}", source, "hole", percent)
        for source in ("h264_pyramid.mp4", "h264_no_b.ts", "hevc_pyramid.mp4")
        for percent in (30, 75)
    ),
    *(Harmed(f"cut_{source}", source, "cut", 70) for source in ("h264_pyramid.mkv", "h264_pyramid.ts", "vp9.webm")),
    *(Harmed(f"late_{packets}.ts", "h264_open.ts", "late", packets) for packets in (20, 60)),
    Harmed("late_hevc.ts", "hevc_open.ts", "late", 30),
    Harmed("twice.ts", "h264_pyramid.ts", "twice"),
    *(
        Harmed(f"edited_{frames}_{source}", source, "edited", frames)
        for source in ("h264_pyramid.mp4", "h264_open.mp4", "hevc_pyramid.mp4")
        for frames in (5, 16)
    ),
)
MADE = tuple(_made())


def write(folder: Path, file: Made | Harmed) -> bytes:
    """The file's bytes, made once in a folder."""
    path = folder / file.name
    if not path.exists():
        if isinstance(file, Made):
            file.write(folder)
        else:
            source = next(made for made in MADE if made.name == file.source)
            path.write_bytes(globals()[file.harm](write(folder, source), file.number))
    return path.read_bytes()


def numbered_video(
    count: int, size: tuple[int, int] = (64, 48), container: str = "mp4", **stream_options: str
) -> bytes:
    """Frame i is filled with grey 4 * i, so that an index can be read off the pixels."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=10, options={"crf": "1", "bf": "2", **stream_options})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            picture = np.full((size[1], size[0], 3), 4 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def count_packets(monkeypatch: Any) -> list[int]:
    """A list that the sparse reader adds to from now on: the number of each packet that it decodes."""
    decoded: list[int] = []
    original = sparse._Reader._packets

    def counted(reader, first, last):
        for number, packet in original(reader, first, last):
            decoded.append(number)
            yield number, packet

    monkeypatch.setattr(sparse._Reader, "_packets", counted)
    return decoded
