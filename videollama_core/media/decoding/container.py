"""A file's container and its video stream, checked against every limit that applies to headers."""

import io
import time

import av
from av.codec.hwaccel import HWAccel
from av.video.stream import VideoStream

from videollama_core.media.pictures import check_size
from videollama_core.protocol import limits
from videollama_core.protocol.errors import UnreadableMedia

# For every decoder, including those that only probe the pictures of a stream.
OPTIONS = {"max_pixels": str(limits.PICTURE_PIXELS.value)}
DECODER_ERRORS = (av.FFmpegError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)
# Self-contained formats. Playlists (hls, dash, concat, sdp) refer to other files and addresses and are never opened.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,h264,hevc,av1,obu,ivf,"
    "m4v,mxf,nut,wtv,rm,dv,vob,wav,mp3,flac,aac,aiff,caf,amr"
)
ADVICE = {  # for a file that is not what was wanted
    "a video": "send a playable mp4, mkv, webm, mov, avi, ts or gif file, or an image as kind image",
    "an audio file": "send a wav, flac, mp3, ogg, m4a or amr file, or a video with an audio track",
}
_LARGE_BOXES = ("moov", "moof", "mdat")  # of an MP4; a truncated file ends within one of them


def open_unseen(data: bytes, hwaccel: HWAccel | None = None) -> "av.container.InputContainer":
    """Like open_container, but without decoding a picture of an MP4 to probe it: at 1080p that takes as long as opening ten files.

    What only the pictures contain is then unknown: their format, their true size if the header is wrong, and the decoder's
    reordering delay. Fragmented files are still probed, for their frame rate. Raises: UnreadableMedia.
    """
    if data[4:8] == b"ftyp":
        container = _open(data, hwaccel, codec_whitelist="none")
        _check_whole(data, container)
        if all(stream.frames and stream.average_rate for stream in container.streams.video):
            return container
        container.close()
    return open_container(data, hwaccel)


def _check_whole(data: bytes, container: "av.container.InputContainer") -> None:
    """Raises: UnreadableMedia if an MP4 ends within one of its boxes (ISO 14496-12, 4.2) and its header names no codec."""
    if any(stream.codec_context is not None for stream in container.streams.video):
        return
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4]) or len(data) - at  # 0: up to the end of the file
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        kind = data[at + 4 : at + 8].decode("latin-1")
        if at + size > len(data) and kind in _LARGE_BOXES:  # otherwise it is trailing data
            container.close()
            raise UnreadableMedia(
                f"the file is cut off: it ends after {len(data)} bytes, within its box {kind!r}, which ends at {at + size}; send the whole file"
            )
        at += max(size, 8)


def open_container(
    data: bytes, hwaccel: HWAccel | None = None, wanted: str = "a video"
) -> "av.container.InputContainer":
    """Open a file of one of CONTAINERS.

    Args:
        hwaccel: the device on which packets are decoded; None for the CPU.
        wanted: what the caller takes the file for, of ADVICE.
    Raises: UnreadableMedia.
    """
    return _open(data, hwaccel, wanted)


def _open(
    data: bytes, hwaccel: HWAccel | None, wanted: str = "a video", **options: str
) -> "av.container.InputContainer":
    try:
        return av.open(
            io.BytesIO(data),
            mode="r",
            metadata_errors="replace",
            options=OPTIONS,
            hwaccel=hwaccel,
            container_options={
                "format_whitelist": CONTAINERS,
                "max_streams": str(limits.VIDEO_STREAMS.value),
                **options,
            },
        )
    except DECODER_ERRORS as error:
        head = data[:16].hex(" ")
        raise UnreadableMedia(
            f"the file is not {wanted} that can be opened ({len(data)} bytes, beginning {head}): {reason(error)}; "
            f"{ADVICE[wanted]}"
        ) from error


def video_stream(container: "av.container.InputContainer") -> VideoStream:
    """The first video stream, set up for decoding. Raises: UnreadableMedia if there is none, or it is too large."""
    pictures = [
        stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic
    ]
    if not pictures:
        audio = " (it has an audio track)" if container.streams.audio else ""
        raise UnreadableMedia(f"the file has no video stream{audio}; send a file with video, or audio as kind audio")
    stream = pictures[0]
    if stream.codec_context is None:
        raise UnreadableMedia("the video's codec is not supported; re-encode it to H.264")
    check_size(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.options = OPTIONS
    stream.codec_context.thread_count = 1  # frame threads cost a fifth to a third more processor time
    return stream


def deadline() -> float:
    """The end of this request's decoding time, in processor time, so that the limit does not depend on the load."""
    return time.process_time() + limits.DECODE_SECONDS.value


def check_bounds(packets: int, until: float) -> None:
    """Raises: UnreadableMedia after too many packets, or past the deadline `until`."""
    limits.VIDEO_FRAMES.check(packets, "the video", UnreadableMedia)
    if time.process_time() > until:
        raise UnreadableMedia(
            f"the video takes more than {limits.DECODE_SECONDS.value} s to decode; send a shorter or smaller one"
        )


def reason(error: Exception) -> str:
    """The message of a decoder's error."""
    return getattr(error, "strerror", None) or str(error)
