"""A video file -> its chosen frames, by PyAV.

Every container is decoded sequentially: only that returned the right frame for every file tried. Every loop has a bound.
"""

import io
import math
import time

import av
import numpy as np
from av.video.stream import VideoStream

from videollama_core.media.rgb import ToRgb
from videollama_core.media.video import Segment, check_size, choose_in_segment
from videollama_core.protocol.errors import UnreadableMedia
from videollama_core.protocol.messages import Frames

MAX_PACKETS = 2_000_000  # 18 hours at 30 frames per second
DECODE_SECONDS = 120.0  # a file that takes longer is refused
# Containers that hold their own data. Playlists (hls, dash, concat, sdp) name other files and addresses: never opened.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,h264,hevc,av1,obu,ivf,"
    "m4v,mxf,nut,wtv,rm,dv,vob,wav,mp3,flac,aac,aiff,caf"
)


def decode_video(data: bytes, segment: Segment, num_frames: int | None) -> Frames:
    """The wanted frames of a video file, rotation tag applied.

    Frames that playback never shows (cut by an edit list) are not candidates.
    Raises: UnreadableMedia if there is no video stream, the file is cut off, or a wanted frame cannot be decoded.
    """
    deadline = time.monotonic() + DECODE_SECONDS
    with open_container(data) as container:
        stream = video_stream(container)
        available = count_frames(container, stream, deadline)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    while True:
        wanted = choose_in_segment(available, rate, segment, num_frames)
        with open_container(data) as container:
            found, shown = _decode_wanted(container, video_stream(container), wanted, deadline)
        if shown is None or shown == available:
            break
        if shown > available or shown == 0:
            raise UnreadableMedia(f"the file lists {available} frames and holds {shown}: it is damaged; re-encode it")
        # Fewer pictures than packets (a codec with hidden frames): what can be shown is what counts.
        available = shown
    missing = sorted(set(wanted.tolist()) - set(found))
    if missing:
        raise UnreadableMedia(f"frame {missing[0]} of {available} cannot be decoded: the file is damaged")
    rgb = {index: picture for index, (picture, _) in found.items()}
    times = np.array([found[index][1] for index in wanted.tolist()], dtype=np.float64)
    return Frames([rgb[index] for index in wanted.tolist()], wanted, times)


def open_container(data: bytes) -> "av.container.InputContainer":
    try:
        return av.open(
            io.BytesIO(data), mode="r", metadata_errors="replace", container_options={"format_whitelist": CONTAINERS}
        )
    except (av.FFmpegError, ValueError) as error:
        head = data[:16].hex(" ")
        raise UnreadableMedia(
            f"the file is not a video that can be opened ({len(data)} bytes, beginning {head}): {reason(error)}. "
            "Send an mp4, mkv, webm, mov, avi, ts or gif file that plays, or an image as kind image"
        ) from error


def video_stream(container: "av.container.InputContainer") -> VideoStream:
    """Raises: UnreadableMedia if there is none, or its pictures are too large."""
    pictures = [
        stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic
    ]
    if not pictures:
        sound = " (it has a sound track)" if container.streams.audio else ""
        raise UnreadableMedia(f"the file has no video stream{sound}; send one that shows pictures")
    stream = pictures[0]
    if stream.codec_context is None:
        raise UnreadableMedia("the video's codec is not known here; re-encode it to H.264")
    check_size(stream.codec_context.width, stream.codec_context.height)
    stream.thread_type = "AUTO"
    return stream


def count_frames(container: "av.container.InputContainer", stream: VideoStream, deadline: float) -> int:
    """Shown frames, from the packets. Raises: UnreadableMedia if the file holds fewer than its own index promises."""
    total = shown = 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue  # the flush packet at the end
            total += 1
            shown += not packet.is_discard
            _check_bounds(total, deadline)
    except av.FFmpegError as error:
        raise UnreadableMedia(f"the file is damaged after frame {total}: {reason(error)}") from error
    if total < stream.frames:
        raise UnreadableMedia(f"the file is cut off: its index lists {stream.frames} frames, {total} can be read")
    return shown


def _check_bounds(packets: int, deadline: float) -> None:
    if packets > MAX_PACKETS:
        raise UnreadableMedia(f"the video has more than {MAX_PACKETS} frames; send a shorter one")
    if time.monotonic() > deadline:
        raise UnreadableMedia(
            f"the video takes more than {DECODE_SECONDS:g} s to decode; send a shorter or smaller one"
        )


def _decode_wanted(
    container: "av.container.InputContainer", stream: VideoStream, wanted: np.ndarray, deadline: float
) -> tuple[dict[int, tuple[np.ndarray, float]], int | None]:
    """Pictures by index, with their time; and the number of frames shown, if the end was reached before the last one."""
    remaining = set(wanted.tolist())
    last = int(wanted[-1])
    found: dict[int, tuple[np.ndarray, float]] = {}
    position = -1
    damaged: av.FFmpegError | None = None
    origin: float | None = None
    to_rgb = ToRgb()
    for packet in container.demux(stream):
        _check_bounds(position, deadline)
        try:
            frames = packet.decode()
        except av.EOFError:
            break
        except av.FFmpegError as error:
            damaged = error
            continue
        for frame in frames:
            position += 1
            origin = frame.time if origin is None else origin
            if position in remaining:
                check_size(frame.width, frame.height)
                seconds = math.nan if frame.time is None else float(frame.time - (origin or 0.0))
                found[position] = (to_rgb(frame), seconds)
                if position == last:
                    return found, None
    if damaged is not None:
        raise UnreadableMedia(f"the video is damaged after frame {position}: {reason(damaged)}") from damaged
    return found, position + 1


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
