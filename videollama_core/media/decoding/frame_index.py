"""The packets of a video stream, listed in one pass over the file, and whether that list is reliable enough for seeking."""

from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import av
import numpy as np
from av.video.stream import VideoStream

from videollama_core.media.decoding.access_points import is_access_point
from videollama_core.media.decoding.container import DECODER_ERRORS, check_bounds, reason
from videollama_core.protocol.errors import UnreadableMedia

NONE = np.iinfo(np.int64).min  # a missing time
HELD = 8 * 2**20  # bytes of packets that are kept in memory for decoding
_CHECKED = 64  # packets between two checks of the limits: reading the clock costs as much as a packet
# Containers with reliable times, by FFmpeg's names. AVI stores none; FFmpeg guesses them.
_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"}
# Codecs with one picture per packet. VP8 and MPEG-4 have packets that show nothing, MPEG-2 packets of one field.
CODECS = {"h264", "hevc", "vp9", "libdav1d", "av1", "prores", "mjpeg"}

Packet: TypeAlias = "av.Packet[VideoStream]"


@dataclass(frozen=True)
class FrameIndex:
    """Packets in decoding order: int64 [N] or bool [N] each; times in units of the stream's time base.

    Args:
        pts: presentation time; NONE if the container has none.
        dts: decoding time; NONE likewise.
        size: bytes.
        key: decoding can begin at the packet.
        shown: false if an edit list removes the packet from playback.
        whole: false if a packet is marked as corrupt, or changes the decoder's header within the stream.
    """

    pts: np.ndarray
    dts: np.ndarray
    size: np.ndarray
    key: np.ndarray
    shown: np.ndarray
    whole: bool

    @property
    def available(self) -> int:
        """Number of frames shown in playback."""
        return int(self.shown.sum())

    def is_sound(self, container: str, codec: str) -> bool:
        """Whether seeking by it is safe: all times are distinct, and the first packet is a keyframe and shown first."""
        return bool(
            container in _CONTAINERS
            and codec in CODECS
            and self.whole
            and len(self.pts)
            and self.key[0]
            and self.pts[0] == self.pts.min() != NONE
            and np.all(np.diff(self.dts[self.dts != NONE]) > 0)
            and len(np.unique(self.pts)) == len(self.pts)
        )

    def packets_of(self, frames: np.ndarray) -> np.ndarray:
        """Frame numbers in presentation order -> numbers of their packets."""
        shown = np.flatnonzero(self.shown)
        return shown[np.argsort(self.pts[shown], kind="stable")[frames]]

    def nearest_keys(self, frames: np.ndarray, first: int, last: int) -> np.ndarray:
        """Frame numbers -> numbers of the nearest keyframes from `first` to `last`, the earlier of two equally near.

        The frames themselves if that range has no keyframe.
        """
        keys = np.flatnonzero(self.key[self.packets_of(np.arange(self.available))])
        keys = keys[(keys >= first) & (keys <= last)]
        if not len(keys):
            return frames
        after = np.searchsorted(keys, frames)
        left, right = keys[np.maximum(after - 1, 0)], keys[np.minimum(after, len(keys) - 1)]
        return np.where(np.abs(frames - left) <= np.abs(right - frames), left, right)

    @cached_property
    def _by_time(self) -> np.ndarray:
        return np.argsort(self.pts, kind="stable")

    @cached_property
    def _times_shown(self) -> np.ndarray:
        return np.sort(self.pts[self.shown])

    def packet_at(self, pts: int) -> int:
        """Number of the packet with a presentation time; -1 if there is none."""
        place = int(np.searchsorted(self.pts, pts, sorter=self._by_time))
        packet = int(self._by_time[place]) if place < len(self.pts) else -1
        return packet if packet >= 0 and self.pts[packet] == pts else -1

    def number_at(self, pts: int) -> int:
        """Number of the frame with a presentation time; -1 if there is none."""
        place = int(np.searchsorted(self._times_shown, pts))
        return place if place < len(self._times_shown) and self._times_shown[place] == pts else -1

    def start_of(self, packet: int) -> int:
        """The keyframe at which decoding must begin: a packet shown before its keyframe also depends on the group before."""
        keys = np.flatnonzero(self.key[: packet + 1])
        return int(keys[self.pts[keys] <= self.pts[packet]][-1])


def read_index(
    container: "av.container.InputContainer", stream: VideoStream, until: float, held: list[Packet] | None = None
) -> FrameIndex:
    """List all packets of a stream.

    Args:
        until: the deadline (`container.deadline`).
        held: filled with the packets, so that they need not be read again; left empty for streams of more than HELD bytes.
    Raises: UnreadableMedia if the file has fewer packets than its own table lists, or cannot be read to its end.
    """
    rows = array("q")  # 40 bytes a packet: there may be two million
    packets, whole, left = 0, True, HELD
    context = stream.codec_context
    codec, header = context.name, context.extradata or b""
    try:
        for packet in container.demux(stream):
            size = packet.size
            if size == 0:
                continue  # the flush packet at the end
            packets += 1
            if held is not None:
                held.append(packet)
                left -= size
                if left < 0:
                    held.clear()
                    held = None
            pts, dts, key = packet.pts, packet.dts, packet.is_keyframe
            if key:
                whole = whole and not packet.has_sidedata("new_extradata")
                key = is_access_point(codec, bytes(packet), header)
            if packet.is_corrupt:
                whole = False
            shown = not packet.is_discard
            rows.extend((NONE if pts is None else pts, NONE if dts is None else dts, size, key, shown))
            if packets % _CHECKED == 0:
                check_bounds(packets, until)
    except DECODER_ERRORS as error:
        raise UnreadableMedia(f"the file is damaged after frame {packets}: {reason(error)}") from error
    check_bounds(packets, until)
    table = np.array(rows, np.int64).reshape(-1, 5)
    # The table of an AVI also lists dropped frames, which are no packets but count in dts.
    listed = int(table[:, 1].max(initial=0)) + 1 if container.format.name == "avi" else 0
    if max(packets, listed) < stream.frames:
        raise UnreadableMedia(f"the file is cut off: its index lists {stream.frames} frames, but {packets} can be read")
    return FrameIndex(table[:, 0], table[:, 1], table[:, 2], table[:, 3] > 0, table[:, 4] > 0, whole)
