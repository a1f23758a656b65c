"""Some sixty video files of many kinds, encoded by PyAV: codecs, containers, pixel formats, interlacing, sizes, rotation, timing."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from videollama_benchmarks.preparation.clips import kept_scheduling

SIZE = (128, 96)
FRAMES = 24
X264 = {"crf": "20", "preset": "ultrafast"}
# 16.16 display matrices (ISO 14496-12, track header) by degrees clockwise.
MATRICES = {90: (0, 1, 0, -1, 0, 0), 180: (-1, 0, 0, 0, -1, 0), 270: (0, -1, 0, 1, 0, 0)}


@dataclass(frozen=True)
class Made:
    name: str  # of the file, its container by the suffix
    codec: str = "libx264"
    pixels: str = "yuv420p"
    size: tuple[int, int] = SIZE
    options: dict[str, str] = field(default_factory=dict)
    colours: dict[str, int] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    rate: Fraction = Fraction(25)
    frames: int = FRAMES
    turn: int = 0  # degrees, written into the track header
    ticks: Callable[[int], int] = int  # the frame's time, in units of 1 / rate

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        with kept_scheduling(), av.open(str(path), "w", options=self.container) as output:
            stream: Any = output.add_stream(self.codec, rate=self.rate, options=self.options or _defaults(self.codec))
            stream.width, stream.height = self.size
            stream.pix_fmt = self.pixels
            for name, value in self.colours.items():
                setattr(stream.codec_context, name, value)
            for number in range(self.frames):
                frame = av.VideoFrame.from_ndarray(picture(number, *self.size), format="rgb24")
                frame.pts, frame.time_base = self.ticks(number), 1 / self.rate
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        if self.turn:
            _turn(path, self.turn)
        return path


def _defaults(codec: str) -> dict[str, str]:
    return X264 if codec == "libx264" else {"x265-params": "log-level=none"} if codec == "libx265" else {}


def _turn(path: Path, degrees: int) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: what lies before the matrix
    a, b, u, c, d, v = (value << 16 for value in MATRICES[degrees])
    data[at : at + 36] = struct.pack(">9i", a, b, u, c, d, v, 0, 0, 1 << 30)
    path.write_bytes(data)


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Waves of colour, noise and a red block that moves: uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = (
        np.sin((x + 3 * number) / 9) * np.cos(y / 13),
        np.cos((x - 2 * number) / 7 + y / 5),
        np.sin(y / 6 + number),
    )
    shown = 127 + 100 * np.stack(waves, -1)
    left = (width // 4 + number) % width
    shown[height // 4 : height // 2, left : left + width // 5] = (250, 20, 30)
    noise = np.random.default_rng(number).normal(0, 6, shown.shape)
    return np.clip(shown + noise, 0, 255).astype(np.uint8)


def _interlaced(first: str) -> dict[str, str]:
    return {"crf": "20", "x264-params": f"{first}=1"}


FIELDS = {"flags": "+ilme+ildct"}
FILES = (
    # containers
    *(Made(f"h264.{suffix}") for suffix in ("mp4", "mov", "mkv", "flv", "nut", "avi", "ts", "h264")),
    Made("fragmented.mp4", container={"movflags": "frag_keyframe+empty_moov"}),
    Made("faststart.mp4", container={"movflags": "faststart"}),
    # pixel formats
    *(Made(f"h264_{pixels}.mp4", pixels=pixels) for pixels in ("yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "gray")),
    *(Made(f"h264_{pixels}.mp4", pixels=pixels) for pixels in ("yuv420p10le", "yuv422p10le", "yuv444p10le")),
    *(
        Made(f"ffv1_{pixels}.mkv", "ffv1", pixels)
        for pixels in ("yuv420p", "yuv440p", "yuv411p", "yuv420p12le", "bgr0")
    ),
    Made("h264_rgb.mp4", "libx264rgb", "rgb24", options=X264),
    # fields
    *(Made(f"fields_{first}.mp4", options=_interlaced(first)) for first in ("tff", "bff")),
    Made("fields_422.mp4", pixels="yuv422p", options=_interlaced("tff")),
    Made("fields_10.mp4", pixels="yuv420p10le", options=_interlaced("tff")),
    Made("fields_102x68.mkv", size=(102, 68), options=_interlaced("tff")),
    Made("fields_mpeg2.mkv", "mpeg2video", options=FIELDS),
    # sizes
    *(Made(f"h264_{w}x{h}.mp4", size=(w, h)) for w, h in ((102, 66), (66, 38), (350, 202), (90, 160), (62, 46))),
    *(Made(f"ffv1_{w}x{h}.mkv", "ffv1", size=(w, h)) for w, h in ((102, 67), (101, 68), (101, 67))),
    *(Made(f"ffv1_422_{w}x{h}.mkv", "ffv1", "yuv422p", (w, h)) for w, h in ((102, 67), (101, 67))),
    *(Made(f"ffv1_10_{w}x{h}.mkv", "ffv1", "yuv420p10le", (w, h)) for w, h in ((102, 67), (101, 68))),
    Made("h264_444_101x67.mp4", pixels="yuv444p", size=(101, 67)),
    # colours
    Made("bt709.mkv", colours={"colorspace": 1, "color_range": 1}),
    Made("bt709_full.mkv", colours={"colorspace": 1, "color_range": 2}),
    Made("bt2020_10.mkv", pixels="yuv420p10le", colours={"colorspace": 9, "color_range": 1}),
    Made("bt709_full_10.mkv", pixels="yuv420p10le", colours={"colorspace": 1, "color_range": 2}),
    # rotation
    *(Made(f"turned_{degrees}.mp4", turn=degrees) for degrees in (90, 180, 270)),
    Made("turned_10.mp4", pixels="yuv420p10le", turn=90),
    Made("turned_422.mp4", pixels="yuv422p", turn=90),
    Made("turned_prores.mov", "prores_ks", "yuv422p10le", turn=90),
    Made("turned_fields.mp4", options=_interlaced("tff"), turn=90),
    Made("turned_tall.mov", size=(160, 90), turn=270),
    # timing and order
    Made("one_frame.mp4", frames=1),
    Made("b_frames.mp4", options={"crf": "20", "bf": "3"}, rate=Fraction(30000, 1001)),
    Made("variable_rate.mp4", ticks=lambda number: number * (number + 3) // 2),
    Made("open_groups.mp4", options={"x264-params": "open-gop=1:keyint=8:bframes=3"}, frames=48),
    Made("intra_refresh.mp4", options={"x264-params": "intra-refresh=1:keyint=12"}, frames=48),
    # codecs
    Made("hevc.mp4", "libx265"),
    Made("hevc_10.mp4", "libx265", "yuv420p10le"),
    Made("hevc_12.mp4", "libx265", "yuv420p12le"),
    Made("vp8.webm", "libvpx"),
    Made("vp9.webm", "libvpx-vp9"),
    Made("vp9_444.webm", "libvpx-vp9", "yuv444p"),
    Made("vp9_101x67.webm", "libvpx-vp9", size=(101, 67)),
    Made("av1.webm", "libsvtav1"),
    Made("mpeg4.mp4", "mpeg4"),
    Made("mpeg4.avi", "mpeg4"),
    Made("mpeg2.mpg", "mpeg2video"),
    Made("mpeg1.mkv", "mpeg1video"),
    Made("mjpeg.avi", "mjpeg", "yuvj420p"),
    Made("mjpeg_422.mov", "mjpeg", "yuvj422p"),
    Made("prores.mov", "prores_ks", "yuv422p10le"),
    Made("huffyuv.avi", "huffyuv", "yuv422p"),
    Made("wmv2.wmv", "wmv2"),
    Made("h263.3gp", "h263"),
    Made("png.mov", "png", "rgb24"),
    Made("raw.avi", "rawvideo", "yuv420p"),
)
