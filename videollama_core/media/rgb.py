"""Decoded frames -> RGB, with the rounding of the reference's decoder (decord 0.6.0, which includes FFmpeg 4.1's swscale).

A scale filter gives its pixels; PyAV's `to_ndarray` does not, because it converts the fields of an interlaced 4:2:0 frame
separately. For 4:2:0 of more than 8 bits or odd height, the scale filter has changed since 4.1: such frames are converted
to 4:2:2 here first.
"""

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange

# Filters by quarter turns counter-clockwise. The frame is rotated before its colours are converted, as decord does; a format
# that cannot be rotated directly (4:2:2) is scaled to one that can.
SCALE = ("scale", "flags=bilinear")  # 4.1's default
TURNS = {
    1: (SCALE, ("transpose", "cclock")),
    2: (SCALE, ("transpose", "clock"), ("transpose", "clock")),
    3: (SCALE, ("transpose", "clock")),
}
TO_RGB = (SCALE, ("format", "rgb24"))
# NVDEC's 4:2:0 formats, whose chroma is interleaved -> the planar format of libavcodec's decoders, and the shift of its bits.
FROM_GPU = {"nv12": ("yuv420p", 0), "p010le": ("yuv420p10le", 6), "p016le": ("yuv420p12le", 4)}
DEPTH = 14  # bits of the 4:2:2 frame: enough for the exact mean of two 12-bit values


class ToRgb:
    """The frames of one stream -> uint8 [H, W, 3], upright. Filter graphs are created once per kind of frame.

    Args:
        from_gpu: convert them to the planar layout of libavcodec's decoders first, so that the colours are the same.
    """

    def __init__(self, from_gpu: bool = False) -> None:
        self._from_gpu = from_gpu
        self._graphs: dict[tuple[object, ...], Graph] = {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4  # counter-clockwise, from the display matrix
        if self._from_gpu:
            frame = part_chroma(frame)
        if turns:
            frame = self._filter(frame, TURNS[turns])
        return self._filter(spread_chroma(frame), TO_RGB).to_ndarray(format="rgb24")

    def _filter(self, frame: av.VideoFrame, filters: tuple[tuple[str, str], ...]) -> av.VideoFrame:
        key = (filters, frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if key not in self._graphs:
            self._graphs[key] = _graph(frame, filters)
        self._graphs[key].vpush(frame)
        return self._graphs[key].vpull()


def _graph(frame: av.VideoFrame, filters: tuple[tuple[str, str], ...]) -> Graph:
    graph = Graph()
    time_base = frame.time_base or Fraction(1, 1000)
    steps = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)]
    steps += [graph.add(name, arguments) for name, arguments in filters]
    graph.link_nodes(*steps, graph.add("buffersink")).configure()
    return graph


def spread_chroma(frame: av.VideoFrame) -> av.VideoFrame:
    """A 4:2:0 frame -> 4:2:2 with the chroma rows that FFmpeg 4.1 uses in its conversion.

    For each row it uses the chroma row above its position or, from the midpoint to the next one on, the mean of the two.
    Other frames, and those with a dedicated conversion in swscale (8 bits, even height), are returned unchanged.
    """
    name, bits = frame.format.name, frame.format.components[0].bits
    if not name.startswith(("yuv420p", "yuvj420p")) or bits > DEPTH - 2 or (bits == 8 and frame.height % 2 == 0):
        return frame
    spread = _like(frame, f"yuv422p{DEPTH}le")
    for source, target in zip(frame.planes, spread.planes, strict=True):
        values = _read(source, bits)[:, : source.width].astype(np.uint16) << (DEPTH - bits)
        if source.height < target.height:
            values = _spread_rows(values, target.height)
        _write(target, values)
    return spread


def part_chroma(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame of a format in FROM_GPU -> the same samples with separate chroma planes; others are returned unchanged."""
    if frame.format.name not in FROM_GPU:
        return frame
    name, shift = FROM_GPU[frame.format.name]
    bits = 16 if shift else 8
    if bits == 8 and frame.color_range == ColorRange.JPEG:
        name = "yuvj420p"
    planar = _like(frame, name)
    luma, chroma = (_read(plane, bits) >> shift for plane in frame.planes)
    for target, values in zip(planar.planes, (luma, chroma[:, 0::2], chroma[:, 1::2]), strict=True):
        _write(target, values[:, : target.width])
    return planar


def _like(frame: av.VideoFrame, name: str) -> av.VideoFrame:
    """An empty frame of another format, with this one's size, time and colour space."""
    other = av.VideoFrame(frame.width, frame.height, name)
    other.pts, other.time_base = frame.pts, frame.time_base
    other.colorspace, other.color_range = frame.colorspace, frame.color_range
    return other


def _read(plane: VideoPlane, bits: int) -> np.ndarray:
    """uint8 or uint16 [H, W], where W is the line size in memory, padding included."""
    return np.frombuffer(bytes(plane), np.dtype(np.uint8 if bits == 8 else np.uint16)).reshape(plane.height, -1)


def _write(plane: VideoPlane, values: np.ndarray) -> None:
    rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
    rows[:, : plane.width] = values
    plane.update(rows.tobytes())


def _spread_rows(values: np.ndarray, rows: int) -> np.ndarray:
    """Upsample chroma rows: uint16 [N, W] -> [rows, W]."""
    place = ((2 * np.arange(rows) + 1) * len(values) / rows - 1) / 2
    above = np.clip(np.floor(place).astype(np.int64), 0, max(len(values) - 2, 0))
    below = np.minimum(above + 1, len(values) - 1)
    means = values[above] // 2 + values[below] // 2  # exact: the lowest two bits are zero
    return np.where((place - above >= 0.5)[:, None], means, values[above])
