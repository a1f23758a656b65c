"""The index of a long MP4 from its own sample table, verified on the groups that are needed, without reading the whole file.

The table has decoding times, not presentation times. If groups of pictures are shown one after the other, these differ in
order only within a group, and the groups that contain a wanted frame are read.
"""

import av
import numpy as np
from av.video.stream import VideoStream

from videollama_core.media.decoding.access_points import is_access_point
from videollama_core.media.decoding.container import DECODER_ERRORS, check_bounds
from videollama_core.media.decoding.frame_index import CODECS, FrameIndex

LEAST = 1000  # packets of a file: with fewer, reading all of them is faster
SHARE = 0.5  # of the packets, the most to read for verification: beyond it all of them can be read instead
LEADING = 16  # packets after a keyframe that are checked for pictures shown before it


def read_table(container: "av.container.InputContainer", stream: VideoStream, size: int) -> FrameIndex | None:
    """All packets by the table, with decoding times as presentation times; None if there is no plausible table.

    Args:
        size: bytes of the file.
    """
    entries, context = stream.index_entries, stream.codec_context
    if container.format.name != "mov,mp4,m4a,3gp,3g2,mj2" or context.name not in CODECS or stream.start_time is None:
        return None
    if not LEAST <= len(entries) == stream.frames:
        return None
    rows = [(entry.timestamp, entry.pos, entry.size, entry.is_keyframe, entry.is_discard) for entry in entries]
    table = np.array(rows, np.int64)
    dts, place, length, key, cut = table.T
    plausible = key[0] and not cut.any() and np.all(np.diff(dts) > 0) and length.min() > 0 and place.min() >= 0
    if not plausible or (place + length).max() > size:
        return None
    return FrameIndex(dts + (stream.start_time - dts[0]), dts, length, key > 0, np.ones(len(dts), bool), whole=True)


def confirmed(
    table: FrameIndex, container: "av.container.InputContainer", stream: VideoStream, wanted: np.ndarray, until: float
) -> FrameIndex | None:
    """The table with the true times of the groups that contain wanted frames; None if a group contradicts the table.

    Raises: UnreadableMedia past a limit.
    """
    keys = np.append(np.flatnonzero(table.key), len(table.pts))
    chosen = np.unique(np.searchsorted(keys, wanted, side="right") - 1)
    groups = [(int(keys[number]), int(keys[number + 1])) for number in chosen]
    if sum(end - start for start, end in groups) > SHARE * len(table.pts):
        return None
    pts = table.pts.copy()
    try:
        for start, end in groups:
            times = _times(table, container, stream, start, min(end + LEADING, len(pts)), until)
            here, after = times[: end - start], times[end - start :]
            apart = not len(after) or (after[0] == after.min() == table.pts[end] and here.max() < after[0])
            if not (here[0] == here.min() == table.pts[start] and apart and len(np.unique(here)) == len(here)):
                return None
            pts[start:end] = here
    except DECODER_ERRORS:
        return None
    return FrameIndex(pts, table.dts, table.size, table.key, table.shown, whole=True)


def _times(
    table: FrameIndex,
    container: "av.container.InputContainer",
    stream: VideoStream,
    first: int,
    last: int,
    until: float,
) -> np.ndarray:
    """Presentation times of packets first to last (exclusive). Raises: ValueError if a packet contradicts the table."""
    context = stream.codec_context
    codec, header = context.name, context.extradata or b""
    times: list[int] = []
    container.seek(int(table.pts[first]), stream=stream)
    for packet in container.demux(stream):
        number = first + len(times)
        check_bounds(number, until)
        if not times and packet.dts is not None and packet.dts < table.dts[first]:
            continue
        expected = (table.dts[number], table.size[number], table.key[number], False)
        if packet.pts is None or expected != (packet.dts, packet.size, packet.is_keyframe, packet.is_discard):
            raise ValueError(f"packet {number} differs from the table")
        if packet.is_corrupt or packet.has_sidedata("new_extradata"):
            raise ValueError(f"packet {number} is damaged, or changes the decoder's header")
        if not times and not is_access_point(codec, bytes(packet), header):
            raise ValueError(f"decoding cannot begin at packet {number}")
        times.append(packet.pts)
        if number + 1 == last:
            return np.array(times, np.int64)
    raise ValueError(f"the file ends before packet {last}")
