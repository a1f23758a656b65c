"""The packets of a video stream, listed by one pass over the file; and whether frames can be sought by that list."""

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

NONE = np.iinfo(np.int64).min  # of a packet without the time
HELD = 8 * 2**20  # bytes of packets that are kept between the list and the decoder
_CHECKED = 64  # packets from one look at the limits to the next: the clock costs as much as a packet
# Containers whose times can be believed, by FFmpeg's names. AVI's cannot: it stores none, and they are guessed.
_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"}
# One packet, one picture, in these. VP8 and MPEG-4 have packets that show nothing, MPEG-2 packets of one field.
CODECS = {"h264", "hevc", "vp9", "libdav1d", "av1", "prores", "mjpeg"}

Packet: TypeAlias = "av.Packet[VideoStream]"


@dataclass(frozen=True)
class FrameIndex:
    """Packets in decoding order: int64 [N] or bool [N] each; times in units of the stream's time base.

    Args:
        pts: when it is shown; NONE where the container does not say.
        dts: when it is decoded; NONE likewise.
        size: bytes.
        key: decoding can begin at it.
        shown: false for what an edit list cuts away.
        whole: false if a packet is marked as corrupt, or changes the decoder's header on the way.
    """

    pts: np.ndarray
    dts: np.ndarray
    size: np.ndarray
    key: np.ndarray
    shown: np.ndarray
    whole: bool

    @property
    def available(self) -> int:
        return int(self.shown.sum())

    def is_sound(self, container: str, codec: str) -> bool:
        """It proves itself: every packet has a time of its own, and the first is a key frame and shown first."""
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
        """Numbers of frames in the order they are shown -> of their packets."""
        shown = np.flatnonzero(self.shown)
        return shown[np.argsort(self.pts[shown], kind="stable")[frames]]

    def nearest_keys(self, frames: np.ndarray, first: int, last: int) -> np.ndarray:
        """Numbers of frames -> of the key frames nearest to them, the earlier of two, among `first` to `last`.

        The frames themselves where no key frame lies there.
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
        """The packet that is shown at a time; -1 if there is none."""
        place = int(np.searchsorted(self.pts, pts, sorter=self._by_time))
        found = int(self._by_time[place]) if place < len(self.pts) else -1
        return found if found >= 0 and self.pts[found] == pts else -1

    def number_at(self, pts: int) -> int:
        """The number of the frame that is shown at a time; -1 if there is none."""
        place = int(np.searchsorted(self._times_shown, pts))
        return place if place < len(self._times_shown) and self._times_shown[place] == pts else -1

    def start_of(self, packet: int) -> int:
        """The key frame that decoding begins at: a packet shown before its key frame leans on the group before, too."""
        keys = np.flatnonzero(self.key[: packet + 1])
        return int(keys[self.pts[keys] <= self.pts[packet]][-1])


def read_index(
    container: "av.container.InputContainer", stream: VideoStream, until: float, held: list[Packet] | None = None
) -> FrameIndex:
    """
    Args:
        held: takes the packets, to be decoded without reading them again; none of a stream of more than HELD bytes.
    Raises: UnreadableMedia if the file holds fewer packets than its own table promises, or cannot be read to its end.
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
    if packets < stream.frames:
        raise UnreadableMedia(f"the file is cut off: its index lists {stream.frames} frames, {packets} can be read")
    table = np.array(rows, np.int64).reshape(-1, 5)
    return FrameIndex(table[:, 0], table[:, 1], table[:, 2], table[:, 3] > 0, table[:, 4] > 0, whole)
