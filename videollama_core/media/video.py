"""Encoded media -> Frames: choose frames, decode, pad. Video files go through video_file.py, or decord_file.py on demand."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from videollama_core.media.video_decoders import frame_decoder
from videollama_core.protocol.errors import BadSegment, InvalidRequest, UnreadableMedia
from videollama_core.protocol.messages import Frames

MAX_FRAMES = 32  # the reference keeps at most this many
MAX_PIXELS = 8192 * 4320  # of one picture, checked before it is decoded: 8K; 32 of them are 3.4 GB as RGB
GIF_RATE = 25.0  # frames per second, assumed by the reference
FOLDER_RATE = 3.0  # frames per second, assumed by the reference


@dataclass(frozen=True)
class Segment:
    """Part of a video in seconds; None means open on that side."""

    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise BadSegment(f"{name} is {value}; it takes seconds as a finite number")

    def refuse_reversed(self) -> None:
        """The public door refuses what the reference silently mends (negative or swapped bounds)."""
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise BadSegment(f"{name} is {value:g} s; it cannot be negative")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise BadSegment(f"start {self.start:g} s is after end {self.end:g} s; swap them")


def choose_frames(num_available: int, num_frames: int) -> np.ndarray:
    """Index of the frame in the middle of each of `num_frames` equal parts of the video.

    Returns: int64 [num_frames], never decreasing, in [0, num_available); indices repeat in a short video.
    Raises: UnreadableMedia if num_available is 0.
    Source: VideoLLaMA2 mm_utils.frame_sample, mode "uniform", its rounding included.
    """
    if num_available < 1:
        raise UnreadableMedia("the video has 0 frames; send one with at least 1")
    part = float(num_available - 1) / num_frames
    edges = part * np.arange(num_frames + 1, dtype=np.float64)
    return np.rint((edges[:-1] + edges[1:]) / 2 + 1e-6).astype(np.int64)


def choose_frames_per_second(num_available: int, rate: float) -> np.ndarray:
    """Index of the middle frame of each second: int64 [seconds]. Raises: UnreadableMedia below 1 frame per second."""
    step = min(int(rate), num_available)
    if step < 1:
        raise UnreadableMedia(f"{rate:g} frames per second are too few for one frame a second; name a number of frames")
    return np.arange(step // 2, num_available, step, dtype=np.int64)


def candidate_range(num_frames: int, rate: float, segment: Segment) -> tuple[int, int]:
    """First and last frame that a segment names, both inclusive.

    Both ends lie one frame early, and full bounds are mended (negative, swapped, equal), as in the reference.
    Raises: BadSegment if no frame lies in the segment.
    """
    start, end = segment.start, segment.end
    if start is not None and end is not None:
        start, end = max(start, 0.0), max(end, 0.0)
        if start > end:
            start, end = end, start
        elif start == end:
            end = start + 1
    first = max(int(start * rate) - 1, 0) if start is not None else 0
    last = min(int(end * rate) - 1, num_frames - 1) if end is not None else num_frames - 1
    if first > last:
        seconds = num_frames / rate if rate else 0.0
        raise BadSegment(
            f"no frame lies between {segment.start} s and {segment.end} s: the video has {num_frames} frames in "
            f"{seconds:.2f} s ({rate:g} per second)"
        )
    return first, last


def choose_in_segment(available: int, rate: float, segment: Segment, num_frames: int | None) -> np.ndarray:
    """Absolute index of each frame to look at: int64 [num_frames], or one a second if num_frames is None."""
    if available < 1:
        raise UnreadableMedia("the video has 0 frames; send one with at least 1")
    first, last = candidate_range(available, rate, segment)
    count = last - first + 1
    chosen = choose_frames_per_second(count, rate) if num_frames is None else choose_frames(count, num_frames)
    return chosen + first


def check_size(width: int, height: int) -> None:
    """Raises: UnreadableMedia if one picture is too large to be decoded."""
    if width * height > MAX_PIXELS or max(width, height) > 32768:
        raise UnreadableMedia(f"a picture of {width}x{height} is larger than the limit of {MAX_PIXELS} pixels")


def load_media(
    kind: str,
    files: Sequence[bytes],
    segment: Segment = Segment(),
    num_frames: int | None = 8,
    decoder: str | None = None,
) -> Frames:
    """Media as it comes over the wire (contract.MEDIA) -> its frames.

    Args:
        kind: one of contract.MEDIA_KINDS.
        files: encoded bytes; one element for "video" and "image".
        num_frames: frames the checkpoint wants, None for one a second.
        decoder: of video files, one of video_decoders.DECODERS; None for what the environment names.
    Raises: UnreadableMedia, BadSegment, InvalidRequest.
    """
    if not files:
        raise InvalidRequest("media is empty; send at least one file")
    if kind in ("video", "image") and len(files) != 1:
        raise InvalidRequest(f"{kind} takes exactly one file, found {len(files)}; send pictures as kind frames")
    for position, file in enumerate(files):
        if not file:
            raise UnreadableMedia(f"file {position + 1} of {len(files)} is empty (0 bytes)")
    if kind != "video" and kind != "folder" and (segment.start is not None or segment.end is not None):
        raise BadSegment(f"start and end need a video or a folder of frames, not kind {kind}")
    if kind == "image":
        return _timeless([_open_array(files[0])[0] if _is_array(files[0]) else open_image(files[0])])
    if kind == "video":
        if _is_array(files[0]):
            raise InvalidRequest("raw frames (.npy) come as kind frames, not video")
        if files[0][:4] == b"GIF8":
            return _pad(load_gif(files[0], segment, num_frames), num_frames)
        return _pad(frame_decoder(decoder)(files[0], segment, num_frames), num_frames)
    if kind == "folder":
        index = choose_in_segment(len(files), FOLDER_RATE, segment, num_frames)
        return _pad(Frames([open_image(files[i]) for i in index], index, index / FOLDER_RATE), num_frames)
    if kind == "frames":
        return _pad(_load_frames(files), num_frames)
    raise InvalidRequest(f"media_kind is {kind!r}; it takes video, image, frames or folder")


# --- gifs, images, arrays ----------------------------------------------------------------------------------------------


def load_gif(data: bytes, segment: Segment, num_frames: int | None) -> Frames:
    """The distinct wanted frames of a gif, at an assumed 25 per second; indices that repeat collapse."""
    with _open_picture(data) as gif:
        available = getattr(gif, "n_frames", 1)
        index = np.unique(choose_in_segment(available, GIF_RATE, segment, num_frames))
        rgb = []
        for position in index.tolist():
            gif.seek(position)
            rgb.append(_picture_to_rgb(gif))
    return Frames(rgb, index, index / GIF_RATE)


def open_image(data: bytes) -> np.ndarray:
    """An encoded picture -> uint8 [H, W, 3]; alpha is dropped and the EXIF orientation ignored, as in the reference."""
    with _open_picture(data) as picture:
        return _picture_to_rgb(picture)


def _open_picture(data: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableMedia(
            f"the file is not a picture that can be opened ({len(data)} bytes, beginning {data[:16].hex(' ')}); "
            "send a png, jpeg, webp, bmp or gif file"
        ) from error
    check_size(*picture.size)
    return picture


def _picture_to_rgb(picture: Image.Image) -> np.ndarray:
    try:
        return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
        raise UnreadableMedia(f"the picture is damaged or cut off: {error}") from error


def _is_array(data: bytes) -> bool:
    return data[:6] == b"\x93NUMPY"


def _open_array(data: bytes) -> list[np.ndarray]:
    """.npy bytes of uint8 [H, W, 3] or [T, H, W, 3] -> pictures."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        raise UnreadableMedia(f"the raw frames are not a valid .npy file: {error}") from error
    if array.ndim == 3:
        array = array[None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UnreadableMedia(
            f"raw frames are {array.dtype} {list(array.shape)}; wanted uint8 [T, H, W, 3] with nothing empty"
        )
    check_size(array.shape[2], array.shape[1])
    return list(array)


def _load_frames(files: Sequence[bytes]) -> Frames:
    pictures: list[np.ndarray] = []
    for file in files[:MAX_FRAMES]:
        pictures.extend(_open_array(file) if _is_array(file) else [open_image(file)])
    return _timeless(pictures[:MAX_FRAMES])


def _timeless(pictures: list[np.ndarray]) -> Frames:
    return Frames(pictures, np.arange(len(pictures), dtype=np.int64), np.full(len(pictures), math.nan))


def _pad(frames: Frames, num_frames: int | None) -> Frames:
    """Black frames at the end while there are fewer than num_frames; then at most MAX_FRAMES."""
    missing = max((num_frames or 1) - len(frames.rgb), 0)
    if missing:
        height, width = frames.rgb[-1].shape[:2]
        # The reference swaps width and height of each from the one before; only square padding can show it.
        black = (np.zeros((width, height, 3), np.uint8), np.zeros((height, width, 3), np.uint8))
        frames = Frames(
            [*frames.rgb, *(black[number % 2] for number in range(missing))],
            np.append(frames.index, np.full(missing, -1, np.int64)),
            np.append(frames.time, np.full(missing, math.nan)),
        )
    return Frames(frames.rgb[:MAX_FRAMES], frames.index[:MAX_FRAMES], frames.time[:MAX_FRAMES])
