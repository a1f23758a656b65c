"""A video file -> its chosen frames: decodes only what they depend on if that is safe, else everything up to the last one."""

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.video.stream import VideoStream

from videollama_core.media.decoding.container import deadline, open_container, open_unseen, video_stream
from videollama_core.media.decoding.frame_index import FrameIndex, Packet, read_index
from videollama_core.media.decoding.frame_table import confirmed, read_table
from videollama_core.media.decoding.sequential import Pictures, decode_sequentially
from videollama_core.media.decoding.sparse import decode_sparsely
from videollama_core.media.video import MAX_FRAMES, Segment, candidate_range, choose_in_segment
from videollama_core.media.video_decoders import Fit, as_it_is
from videollama_core.protocol import limits
from videollama_core.protocol.errors import UnreadableMedia
from videollama_core.protocol.messages import Frames


def decode_video(
    data: bytes,
    segment: Segment,
    num_frames: int | None,
    fit: Fit = as_it_is,
    sparse: bool = True,
    hwaccel: HWAccel | None = None,
) -> Frames:
    """The chosen frames of a video file, rotated by its rotation tag, each fitted as soon as it is decoded.

    Frames that playback never shows (removed by an edit list) are not candidates.

    Args:
        sparse: false to decode every frame; the result is the same.
        hwaccel: the device on which pictures are decoded; None for the CPU.
    Raises: UnreadableMedia if there is no video stream, the file is cut off, or a wanted frame cannot be decoded.
    """
    until = deadline()
    if sparse:
        with open_unseen(data, hwaccel) as container:
            stream = video_stream(container)
            choice = _Choice(stream, segment, num_frames)
            table = read_table(container, stream, len(data))
            frames = (
                _by_list(container, stream, choice, until, fit)[0]
                if table is None
                else _by_table(container, stream, table, choice, until, fit)
            )
        if frames is not None:
            return frames
        sparse = table is not None  # sparse decoding by a list of all packets was not tried yet
    with open_container(data, hwaccel) as container:  # from the start of the file
        stream = video_stream(container)
        choice = _Choice(stream, segment, num_frames)
        frames, index = _by_list(container, stream, choice, until, fit, sparse)
        reliable = index.is_sound(container.format.name, stream.codec_context.name)
    return frames or _from_the_start(data, index, reliable, choice, until, fit, hwaccel)


def _by_table(
    container: "av.container.InputContainer",
    stream: VideoStream,
    table: FrameIndex,
    choice: "_Choice",
    until: float,
    fit: Fit,
) -> Frames | None:
    """Sparse decoding by the file's own table; None if the stream differs from it."""
    wanted = choice.by_keyframes(choice.of(table.available), table)
    index = confirmed(table, container, stream, wanted, until)
    pictures = None if index is None else decode_sparsely(container, stream, index, wanted, until, fit)
    return None if pictures is None else _frames(pictures, wanted)


def _by_list(
    container: "av.container.InputContainer",
    stream: VideoStream,
    choice: "_Choice",
    until: float,
    fit: Fit,
    sparse: bool = True,
) -> tuple[Frames | None, FrameIndex]:
    """Sparse decoding by a list of all packets, and that list; None if it is unreliable, or the stream differs from it."""
    held: list[Packet] = []
    index = read_index(container, stream, until, held if sparse else None)
    if not sparse or not index.is_sound(container.format.name, stream.codec_context.name):
        return None, index
    wanted = choice.by_keyframes(choice.of(index.available), index)
    pictures = decode_sparsely(container, stream, index, wanted, until, fit, held)
    return None if pictures is None else _frames(pictures, wanted), index


def _from_the_start(
    data: bytes,
    index: FrameIndex,
    reliable: bool,
    choice: "_Choice",
    until: float,
    fit: Fit,
    hwaccel: HWAccel | None,
) -> Frames:
    """Decode everything up to the last wanted frame. Raises: UnreadableMedia if a wanted one cannot be decoded."""
    available, wanted = index.available, choice.of(index.available)
    if reliable:
        wanted = choice.by_keyframes(wanted, index)
    number_at = index.number_at if reliable else None
    pictures: Pictures | None = None
    while pictures is None:
        decoded, shown = decode_sequentially(data, wanted, until, fit, number_at, hwaccel)
        if shown is None or shown == available:
            pictures = decoded
        elif shown > available or shown == 0:
            raise UnreadableMedia(f"the file lists {available} frames but holds {shown}: it is damaged; re-encode it")
        else:
            # Fewer pictures than packets (a codec with hidden frames): choose again among those that are shown.
            available, wanted = shown, choice.of(shown)
    missing = sorted(set(wanted.tolist()) - set(pictures))
    if missing:
        raise UnreadableMedia(f"frame {missing[0]} of {available} cannot be decoded: the file is damaged; re-encode it")
    return _frames(pictures, wanted)


class _Choice:
    """Chooses the frames of a stream that a segment selects."""

    def __init__(self, stream: VideoStream, segment: Segment, num_frames: int | None) -> None:
        self._segment, self._num_frames = segment, num_frames
        self._rate = float(stream.average_rate or stream.guessed_rate or 0)
        self._pixels = stream.codec_context.width * stream.codec_context.height

    def of(self, available: int) -> np.ndarray:
        """Numbers of the chosen frames among those available: int64 [T]. Raises: UnreadableMedia, BadSegment."""
        chosen = choose_in_segment(available, self._rate, self._segment, self._num_frames)[:MAX_FRAMES]
        limits.VIDEO_PIXELS.check((int(chosen[-1]) + 1) * self._pixels, "the video", UnreadableMedia)
        return chosen

    def by_keyframes(self, wanted: np.ndarray, index: FrameIndex) -> np.ndarray:
        """The nearest keyframes to the wanted frames if the segment asks for keyframes, else the wanted frames."""
        if not self._segment.by_keyframes:
            return wanted
        return index.nearest_keys(wanted, *candidate_range(index.available, self._rate, self._segment))


def _frames(pictures: Pictures, wanted: np.ndarray) -> Frames:
    times = np.array([pictures[number][1] for number in wanted.tolist()], dtype=np.float64)
    return Frames([pictures[number][0] for number in wanted.tolist()], wanted, times)
