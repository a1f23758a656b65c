"""The index of a long MP4 by its own table, where the groups that are looked at prove it: the file is not read through.

The table tells when each packet is decoded, not when it is shown. In groups that are shown one after the other that makes no
difference but within a group, and those that hold a wanted frame are read.
"""

import av
import numpy as np
from av.video.stream import VideoStream

from videollama_core.media.decoding.access_points import is_access_point
from videollama_core.media.decoding.container import DECODER_ERRORS, check_bounds
from videollama_core.media.decoding.frame_index import CODECS, FrameIndex

LEAST = 1000  # packets of a file: fewer are read through sooner
SHARE = 0.5  # of the packets that are read, at most: otherwise all of them can be
LEADING = 16  # packets behind a key frame among which one that is shown before it would be


def read_table(container: "av.container.InputContainer", stream: VideoStream, size: int) -> FrameIndex | None:
    """Every packet by the table, as if each were shown when it is decoded; None where there is none that can be believed.

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
    sound = key[0] and not cut.any() and np.all(np.diff(dts) > 0) and length.min() > 0 and place.min() >= 0
    if not sound or (place + length).max() > size:
        return None
    return FrameIndex(dts + (stream.start_time - dts[0]), dts, length, key > 0, np.ones(len(dts), bool), whole=True)


def confirmed(
    table: FrameIndex, container: "av.container.InputContainer", stream: VideoStream, wanted: np.ndarray, until: float
) -> FrameIndex | None:
    """The table with the true times of the groups that hold wanted frames; None if one is not as the table lets expect.

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
    """When packets first to last (exclusive) are shown. Raises: ValueError where one is not what the table says."""
    context = stream.codec_context
    codec, header = context.name, context.extradata or b""
    found: list[int] = []
    container.seek(int(table.pts[first]), stream=stream)
    for packet in container.demux(stream):
        number = first + len(found)
        check_bounds(number, until)
        if not found and packet.dts is not None and packet.dts < table.dts[first]:
            continue
        said = (table.dts[number], table.size[number], table.key[number], False)
        if packet.pts is None or said != (packet.dts, packet.size, packet.is_keyframe, packet.is_discard):
            raise ValueError(f"packet {number} is not what the table says")
        if packet.is_corrupt or packet.has_sidedata("new_extradata"):
            raise ValueError(f"packet {number} is damaged, or changes the decoder's header")
        if not found and not is_access_point(codec, bytes(packet), header):
            raise ValueError(f"decoding cannot begin at packet {number}")
        found.append(packet.pts)
        if number + 1 == last:
            return np.array(found, np.int64)
    raise ValueError(f"the file ends before packet {last}")
