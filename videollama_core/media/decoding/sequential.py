"""The plain way: every frame of a video from the first packet to the last wanted one. Right for every file tried, and slow."""

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

REORDERED = 16  # pictures that a decoder may hold back at most
Found = dict[int, tuple[np.ndarray, float]]  # picture and seconds by number of the frame


def decode_sequentially(
    data: bytes,
    wanted: np.ndarray,
    until: float,
    fit: Fit,
    number_at: Callable[[int], int] | None = None,
    hwaccel: HWAccel | None = None,
) -> tuple[Found, int | None]:
    """The wanted frames; and the number of frames shown, if the end was reached before the last wanted one.

    One thread decodes: with several, what is made up for a damaged picture is not the same every time.

    Args:
        number_at: the number of a frame by its pts, -1 for another time; None where times tell nothing. A wanted frame that is lost to damage is then the
            next one that is not; elsewhere frames are counted.
    Raises: UnreadableMedia if a picture on the way cannot be decoded and the end comes too early.
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
) -> tuple[Found, int | None]:
    awaited = set(wanted.tolist())
    last = int(wanted[-1])
    found: Found = {}
    instead: Found = {}  # of awaited frames: the first one that came in their place
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
            passed = [other for other in awaited if other < number and other not in instead]
            if passed or number in awaited:
                check_size(frame.width, frame.height)
                seconds = math.nan if frame.time is None else float(frame.time - (origin or 0.0))
                picture = (fit(to_rgb(frame)), seconds)
                instead.update(dict.fromkeys(passed, picture))
                if number in awaited:
                    awaited.discard(number)
                    found[number] = picture
            beyond += number >= last
            if not awaited or beyond > REORDERED:
                return {**instead, **found}, None
    if damaged is not None:
        raise UnreadableMedia(f"the video is damaged after frame {position}: {reason(damaged)}") from damaged
    return found, position + 1
