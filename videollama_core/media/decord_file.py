"""A video file -> its chosen frames, by decord (video_decoders.py says what it cannot do)."""

import io
import time

import decord
import numpy as np

from videollama_core.media.video import Segment, choose_in_segment
from videollama_core.media.video_file import DECODE_SECONDS, count_frames, open_container, video_stream
from videollama_core.protocol.errors import UnreadableMedia
from videollama_core.protocol.messages import Frames


def decode_video(data: bytes, segment: Segment, num_frames: int | None) -> Frames:
    """As video_file.decode_video, whose checks (container, size, cut off) are made before decord opens the file.

    Raises: UnreadableMedia, BadSegment. Nothing bounds the time that decord takes.
    """
    with open_container(data) as container:
        count_frames(container, video_stream(container), time.monotonic() + DECODE_SECONDS)
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        wanted = choose_in_segment(len(reader), reader.get_avg_fps(), segment, num_frames)
        rgb = reader.get_batch(wanted.tolist()).asnumpy()
        times = reader.get_frame_timestamp(wanted.tolist())[:, 0].astype(np.float64)
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        said = (str(error).splitlines() or ["no reason"])[0]
        raise UnreadableMedia(
            f"decord cannot decode the file: {said}. Serve with --decoder pyav to decode it"
        ) from error
    return Frames(list(rgb), wanted, times)
