"""Sparse decoding: only the wanted frames of a video and what they depend on, from the keyframe before each.

On any deviation from the index it gives up and returns None; the caller then decodes everything.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import av
import numpy as np
from av.video.stream import VideoStream

from videollama_core.media.decoding.access_points import has_unreferenced
from videollama_core.media.decoding.container import DECODER_ERRORS, OPTIONS, check_bounds
from videollama_core.media.decoding.frame_index import NONE, FrameIndex, Packet
from videollama_core.media.rgb import ToRgb
from videollama_core.media.video_decoders import Fit

# Any damage is an error here, because the look of a damaged picture may depend on the pictures before it.
# "strict" also assumes the largest reordering delay if the header does not state it, so that no picture is output late.
_STRICT = {**OPTIONS, "err_detect": "explode", "strict": "strict"}
Pictures = dict[int, tuple[np.ndarray, float]]  # picture and seconds by frame or packet number


def decode_sparsely(
    container: "av.container.InputContainer",
    stream: VideoStream,
    index: FrameIndex,
    wanted: np.ndarray,
    until: float,
    fit: Fit,
    held: Sequence[Packet] = (),
) -> Pictures | None:
    """The wanted frames; None if the stream differs from the index, or a picture that they depend on is damaged.

    Args:
        held: all packets of the index; empty to read them from the container.
    Raises: UnreadableMedia past a limit.
    """
    frames = np.unique(wanted)
    packets = index.packets_of(frames)
    frame_of = dict(zip(packets.tolist(), frames.tolist(), strict=True))
    groups: dict[int, list[int]] = {}
    for packet in packets.tolist():
        groups.setdefault(index.start_of(packet), []).append(packet)
    stream.codec_context.options = _STRICT
    reader = _Reader(container, stream, index, until, fit, held)
    pictures: Pictures = {}
    try:
        for start in sorted(groups):
            group = reader.read(start, groups[start])
            if group is None:
                return None
            pictures.update({frame_of[packet]: picture for packet, picture in group.items()})
    except DECODER_ERRORS:
        return None
    return pictures


class _Reader:
    """Decodes groups of pictures, one after the other, from one container."""

    def __init__(
        self,
        container: "av.container.InputContainer",
        stream: VideoStream,
        index: FrameIndex,
        until: float,
        fit: Fit,
        held: Sequence[Packet],
    ) -> None:
        self._container, self._stream, self._index, self._until, self._fit = container, stream, index, until, fit
        self._held = held
        self._to_rgb = ToRgb(stream.codec_context.is_hwaccel)
        context = stream.codec_context
        safe = has_unreferenced(context.name, context.extradata or b"")
        self._between: Literal["NONREF", "DEFAULT"] = "NONREF" if safe else "DEFAULT"
        self._size = (context.width, context.height)  # the size that was checked against the limits
        self._origin = self._seconds(int(index.pts[index.shown].min()))

    def read(self, start: int, wanted: list[int]) -> Pictures | None:
        """Decode from packet `start` on; return the pictures of the wanted packets, or None if some are missing."""
        context = self._stream.codec_context
        at_time = {int(self._index.pts[packet]): packet for packet in wanted}
        pictures: Pictures = {}
        skipped: Literal["NONREF", "DEFAULT"] | None = None
        for number, packet in self._packets(start, max(wanted)):
            skips = "DEFAULT" if number in wanted or number == start else self._between
            if skips != skipped:
                context.skip_frame = skipped = skips
            self._keep(packet.decode(), at_time, pictures)
        self._keep(context.decode(None), at_time, pictures)
        return pictures if len(pictures) == len(wanted) else None

    def _keep(self, frames: list[av.VideoFrame], at_time: dict[int, int], pictures: Pictures) -> None:
        """Keep the pictures at the wanted times. Raises: ValueError if one is damaged, or occurs twice."""
        for frame in frames:
            if frame.is_corrupt:
                raise ValueError("a decoded picture is damaged")
            pts = frame.pts
            packet = at_time.get(NONE if pts is None else pts)
            if packet is None or pts is None:
                continue
            if packet in pictures:
                raise ValueError(f"packet {packet} shows two pictures")
            if (frame.width, frame.height) != self._size:
                raise ValueError(f"a picture of {frame.width}x{frame.height} in a stream of {self._size}")
            frame.time_base = self._stream.time_base  # flushed frames have none
            pictures[packet] = (self._fit(self._to_rgb(frame)), self._seconds(pts) - self._origin)

    def _packets(self, first: int, last: int) -> Iterator[tuple[int, Packet]]:
        """Packets first to last with their numbers. Raises: ValueError if one differs from the index."""
        index, awaited, here = self._index, first, slice(first, last + 1)
        expected = zip(index.pts[here].tolist(), index.size[here].tolist(), index.shown[here].tolist(), strict=True)
        for packet in self._held_from(first) if self._held else self._after_seek(first):
            check_bounds(awaited, self._until)
            if awaited == first and self._number_of(packet) < first:
                continue
            pts, size, shown = next(expected)
            if packet.pts != pts or packet.size != size or packet.is_discard == shown:
                raise ValueError(f"packet {awaited} differs from the index")
            yield awaited, packet
            if awaited == last:
                return
            awaited += 1
        raise ValueError(f"the file ends before packet {awaited}")

    def _held_from(self, number: int) -> Sequence[Packet]:
        self._stream.codec_context.flush_buffers()  # as a seek does
        return self._held[number:]

    def _after_seek(self, number: int) -> Iterator[Packet]:
        """The packets from this one, or an earlier one, on: containers seek by either presentation or decoding time."""
        for time in (self._index.pts[number], self._index.dts[number]):
            self._container.seek(int(time), stream=self._stream)
            packets = self._container.demux(self._stream)
            first = next(packets, None)
            if first is not None and self._number_of(first) <= number:
                yield first
                yield from packets
                return

    def _number_of(self, packet: Packet) -> int:
        """The packet's number; -1 if it is not in the index, as may happen to the first one after a seek."""
        return -1 if packet.pts is None else self._index.packet_at(packet.pts)

    def _seconds(self, pts: int) -> float:
        base = self._stream.time_base
        assert base is not None
        return float(pts) * base.numerator / base.denominator
