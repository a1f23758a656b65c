"""Sequential decoding: every frame of a video from the first packet to the last wanted one. Correct for all tested files, but slow."""

import math
from collections.abc import Callable

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.video.stream import VideoStream

from videollama_core.media.decoding.container import (
    DECODER_ERRORS,
    check_bounds,
    open_container,
    reason,
    video_stream,
)
from videollama_core.media.pictures import check_size
from videollama_core.media.rgb import ToRgb
from videollama_core.media.video_decoders import Fit
from videollama_core.protocol.errors import UnreadableMedia

REORDERED = 16  # the most pictures that a decoder may hold back for reordering
Pictures = dict[int, tuple[np.ndarray, float]]  # picture and seconds by frame number


def decode_sequentially(
    data: bytes,
    wanted: np.ndarray,
    until: float,
    fit: Fit,
    number_at: Callable[[int], int] | None = None,
    hwaccel: HWAccel | None = None,
) -> tuple[Pictures, int | None]:
    """The wanted frames, and the number of frames shown if the file ended before the last wanted one, else None.

    Decoding uses one thread: with several, the concealment of a damaged picture is not deterministic.

    Args:
        number_at: the number of a frame by its pts, -1 for an unknown time; None if times are unreliable. With it, a wanted
            frame that is lost to damage is replaced by the next decodable one; without it, frames are counted.
    Raises: UnreadableMedia if a picture cannot be decoded and the file ends before the last wanted frame.
    """
    try:
        with open_container(data, hwaccel) as container:
            return _decode_wanted(container, video_stream(container), wanted, until, fit, number_at or (lambda _: -1))
    except DECODER_ERRORS as error:
        raise UnreadableMedia(f"the video cannot be decoded: {reason(error)}") from error


def _decode_wanted(
    container: "av.container.InputContainer",
    stream: VideoStream,
    wanted: np.ndarray,
    until: float,
    fit: Fit,
    number_at: Callable[[int], int],
) -> tuple[Pictures, int | None]:
    awaited = set(wanted.tolist())
    last = int(wanted[-1])
    pictures: Pictures = {}
    substitutes: Pictures = {}  # for awaited frames that were passed: the first frame after each
    position, beyond = -1, 0
    damaged: av.FFmpegError | None = None
    origin: float | None = None
    to_rgb = ToRgb(stream.codec_context.is_hwaccel)
    for packet in container.demux(stream):
        check_bounds(position, until)
        try:
            frames = packet.decode()
        except av.EOFError:
            break
        except av.FFmpegError as error:
            damaged = error
            continue
        for frame in frames:
            position += 1
            known = -1 if frame.pts is None else number_at(frame.pts)
            number = position if known < 0 else known
            origin = frame.time if origin is None else origin
            passed = [other for other in awaited if other < number and other not in substitutes]
            if passed or number in awaited:
                check_size(frame.width, frame.height)
                seconds = math.nan if frame.time is None else float(frame.time - (origin or 0.0))
                picture = (fit(to_rgb(frame)), seconds)
                substitutes.update(dict.fromkeys(passed, picture))
                if number in awaited:
                    awaited.discard(number)
                    pictures[number] = picture
            beyond += number >= last
            if not awaited or beyond > REORDERED:
                return {**substitutes, **pictures}, None
    if damaged is not None:
        raise UnreadableMedia(f"the video is damaged after frame {position}: {reason(damaged)}") from damaged
    return pictures, position + 1
