"""The wanted frames of a video and little else: from the key frame before each, without the pictures nothing leans on.

Whatever is not as the index promised ends this way: the answer is None, and the caller decodes everything.
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

# The smallest damage is an error here: what a damaged picture looks like may depend on those before it.
# Strict also holds back as many pictures as the header allows where it does not say how many: none comes too late to be given out.
_STRICT = {**OPTIONS, "err_detect": "explode", "strict": "strict"}
Found = dict[int, tuple[np.ndarray, float]]  # picture and seconds by number of the frame


def decode_sparsely(
    container: "av.container.InputContainer",
    stream: VideoStream,
    index: FrameIndex,
    wanted: np.ndarray,
    until: float,
    fit: Fit,
    held: Sequence[Packet] = (),
) -> Found | None:
    """None if the stream is not what the index says, or a picture on the way is damaged.

    Args:
        held: all packets of the index; none if they are to be read from the container.
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
    found: Found = {}
    try:
        for start in sorted(groups):
            pictures = reader.read(start, groups[start])
            if pictures is None:
                return None
            found.update({frame_of[packet]: picture for packet, picture in pictures.items()})
    except DECODER_ERRORS:
        return None
    return found


class _Reader:
    """Decodes one group after the other from one container."""

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
        self._size = (context.width, context.height)  # which the limits were checked for
        self._origin = self._seconds(int(index.pts[index.shown].min()))

    def read(self, start: int, wanted: list[int]) -> Found | None:
        """The pictures of packets that are decoded from packet `start` on."""
        context = self._stream.codec_context
        at_time = {int(self._index.pts[packet]): packet for packet in wanted}
        found: Found = {}
        skipped: Literal["NONREF", "DEFAULT"] | None = None
        for number, packet in self._packets(start, max(wanted)):
            skips = "DEFAULT" if number in wanted or number == start else self._between
            if skips != skipped:
                context.skip_frame = skipped = skips
            self._keep(packet.decode(), at_time, found)
        self._keep(context.decode(None), at_time, found)
        return found if len(found) == len(wanted) else None

    def _keep(self, frames: list[av.VideoFrame], at_time: dict[int, int], found: Found) -> None:
        """Of the pictures of a group those at the wanted times. Raises: ValueError if one is damaged, or comes twice."""
        for frame in frames:
            if frame.is_corrupt:
                raise ValueError("a picture on the way is damaged")
            pts = frame.pts
            packet = at_time.get(NONE if pts is None else pts)
            if packet is None or pts is None:
                continue
            if packet in found:
                raise ValueError(f"packet {packet} shows two pictures")
            if (frame.width, frame.height) != self._size:
                raise ValueError(f"a picture of {frame.width}x{frame.height} in a stream of {self._size}")
            frame.time_base = self._stream.time_base  # what the decoder still held comes without
            found[packet] = (self._fit(self._to_rgb(frame)), self._seconds(pts) - self._origin)

    def _packets(self, first: int, last: int) -> Iterator[tuple[int, Packet]]:
        """Packets first to last with their numbers. Raises: ValueError if one is not what the index says."""
        index, awaited, here = self._index, first, slice(first, last + 1)
        said = zip(index.pts[here].tolist(), index.size[here].tolist(), index.shown[here].tolist(), strict=True)
        for packet in self._held_from(first) if self._held else self._after_seek(first):
            check_bounds(awaited, self._until)
            if awaited == first and self._number_of(packet) < first:
                continue
            pts, size, shown = next(said)
            if packet.pts != pts or packet.size != size or packet.is_discard == shown:
                raise ValueError(f"packet {awaited} is not what the index says")
            yield awaited, packet
            if awaited == last:
                return
            awaited += 1
        raise ValueError(f"the file ends before packet {awaited}")

    def _held_from(self, number: int) -> Sequence[Packet]:
        self._stream.codec_context.flush_buffers()  # as a seek does
        return self._held[number:]

    def _after_seek(self, number: int) -> Iterator[Packet]:
        """The packets from this one or one before it on: some containers seek by one kind of time, some by the other."""
        for time in (self._index.pts[number], self._index.dts[number]):
            self._container.seek(int(time), stream=self._stream)
            packets = self._container.demux(self._stream)
            first = next(packets, None)
            if first is not None and self._number_of(first) <= number:
                yield first
                yield from packets
                return

    def _number_of(self, packet: Packet) -> int:
        """-1 for one that the index does not know, as the first one after a seek can be."""
        return -1 if packet.pts is None else self._index.packet_at(packet.pts)

    def _seconds(self, pts: int) -> float:
        base = self._stream.time_base
        assert base is not None
        return float(pts) * base.numerator / base.denominator
