"""A video file -> its chosen frames, by decord (video_decoders.py lists its limitations)."""

import io

import decord
import numpy as np

from videollama_core.media.decoding.container import deadline, open_unseen, video_stream
from videollama_core.media.decoding.frame_index import read_index
from videollama_core.media.video import MAX_FRAMES, Segment, choose_in_segment
from videollama_core.media.video_decoders import Fit, as_it_is
from videollama_core.protocol.errors import InvalidRequest, UnreadableMedia
from videollama_core.protocol.messages import Frames


def decode_video(data: bytes, segment: Segment, num_frames: int | None, fit: Fit = as_it_is) -> Frames:
    """Like decoding.video_file.decode_video, whose checks (container, size, truncation) run before decord opens the file.

    The time that decord takes is not bounded. Raises: UnreadableMedia, BadSegment, InvalidRequest.
    """
    if segment.by_keyframes:
        raise InvalidRequest(
            "sampling=keyframes is not supported by the decoder decord; omit it, or serve with --decoder pyav"
        )
    with open_unseen(data) as container:
        read_index(container, video_stream(container), deadline())
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        wanted = choose_in_segment(len(reader), reader.get_avg_fps(), segment, num_frames)[:MAX_FRAMES]
        rgb = reader.get_batch(wanted.tolist()).asnumpy()
        times = reader.get_frame_timestamp(wanted.tolist())[:, 0].astype(np.float64)
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        message = (str(error).splitlines() or ["no reason"])[0]
        raise UnreadableMedia(
            f"decord cannot decode the file: {message}. Serve with --decoder pyav to decode it"
        ) from error
    return Frames([fit(picture) for picture in rgb], wanted, times)
