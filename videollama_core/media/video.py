"""Encoded media -> Frames: choose frames, decode, pad. Video files are decoded by decoding/, decord_file.py or nvdec_file.py."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videollama_core.media.pictures import check_size, is_array, open_array, open_image, open_picture
from videollama_core.media.video_decoders import Fit, as_it_is, frame_decoder
from videollama_core.protocol import limits
from videollama_core.protocol.contract import MEDIA_KINDS, SAMPLINGS
from videollama_core.protocol.errors import BadSegment, InvalidRequest, UnreadableMedia
from videollama_core.protocol.messages import Frames

MAX_FRAMES = limits.FRAMES.value
FILE_KINDS = ("video", "video_with_audio")  # contract.MEDIA_KINDS that are one video file
TIMED_KINDS = (*FILE_KINDS, "folder")  # kinds whose frames are sampled
GIF_RATE = 25.0  # frames per second, assumed by the reference
FOLDER_RATE = 3.0  # frames per second, assumed by the reference


@dataclass(frozen=True)
class Segment:
    """The part of a video to use, and how to sample its frames.

    Args:
        start, end: seconds; None means open on that side.
        num_frames: how many frames; None for the checkpoint's number.
        sampling: one of contract.SAMPLINGS; None is exact. With "keyframes" each frame of a video file is replaced by the
            nearest keyframe between start and end. If there is none, or the file does not list them, frames are exact.
    Raises: BadSegment, InvalidRequest.
    """

    start: float | None = None
    end: float | None = None
    num_frames: int | None = None
    sampling: str | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise BadSegment(f"{name} is {value}; it takes seconds as a finite number")
            limits.SEGMENT_SECONDS.check(abs(value or 0.0), name, BadSegment)
        if self.num_frames is not None:
            if self.num_frames < 1:
                raise InvalidRequest(f"num_frames is {self.num_frames}; expected at least 1")
            limits.FRAMES.check(self.num_frames, "num_frames")
        if self.sampling is not None and self.sampling not in SAMPLINGS:
            raise InvalidRequest(f"sampling is {self.sampling!r}; it takes {' or '.join(SAMPLINGS)}")

    @property
    def by_keyframes(self) -> bool:
        return self.sampling == "keyframes"

    def refuse_for(self, kind: str) -> None:
        """Raises: BadSegment or InvalidRequest if an option does not apply to media of this kind."""
        if kind not in (*TIMED_KINDS, "audio") and (self.start is not None or self.end is not None):
            raise BadSegment(f"start and end need a video or a folder of frames, not kind {kind}")
        if kind not in TIMED_KINDS and self.num_frames is not None:
            raise InvalidRequest(f"num_frames needs a video, a gif or a folder of frames, not kind {kind}")
        if kind not in FILE_KINDS and self.sampling is not None:
            raise InvalidRequest(f"sampling needs a video file, not kind {kind}")

    def refuse_reversed(self) -> None:
        """Raises: BadSegment for negative or swapped bounds, which the reference silently corrects."""
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise BadSegment(f"{name} is {value:g} s; it cannot be negative")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise BadSegment(f"start {self.start:g} s is after end {self.end:g} s; swap them")


def choose_frames(num_available: int, num_frames: int) -> np.ndarray:
    """Index of the frame in the middle of each of `num_frames` equal parts of the video.

    Returns: int64 [num_frames], non-decreasing, in [0, num_available); indices repeat in a short video.
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
        raise UnreadableMedia(
            f"{rate:g} frames per second are too few to sample one per second; set the number of frames"
        )
    return np.arange(step // 2, num_available, step, dtype=np.int64)


def candidate_range(num_frames: int, rate: float, segment: Segment) -> tuple[int, int]:
    """First and last frame of a segment, both inclusive.

    As in the reference, both ends are one frame early, and if both bounds are set, negative, swapped or equal ones are
    corrected.
    Raises: BadSegment if the segment contains no frame.
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
        until = "its end" if segment.end is None else f"{segment.end:g} s"
        raise BadSegment(
            f"no frame lies between {segment.start or 0:g} s and {until}: the video has {num_frames} frames in "
            f"{seconds:.2f} s ({rate:g} per second)"
        )
    return first, last


def choose_in_segment(available: int, rate: float, segment: Segment, num_frames: int | None) -> np.ndarray:
    """Absolute index of each frame to use: int64 [num_frames], or one per second if num_frames is None.

    Args:
        available: frames of the video.
        rate: frames per second.
    Raises: UnreadableMedia, BadSegment.
    """
    if available < 1:
        raise UnreadableMedia("the video has 0 frames; send one with at least 1")
    first, last = candidate_range(available, rate, segment)
    count = last - first + 1
    chosen = choose_frames_per_second(count, rate) if num_frames is None else choose_frames(count, num_frames)
    return chosen + first


def load_media(
    kind: str,
    files: Sequence[bytes],
    segment: Segment = Segment(),
    num_frames: int | None = 8,
    decoder: str | None = None,
    fit: Fit = as_it_is,
) -> Frames:
    """Media as received in a request (contract.MEDIA) -> its frames.

    Args:
        kind: one of contract.MEDIA_KINDS.
        files: encoded bytes; one element for "video" and "image".
        num_frames: the checkpoint's number of frames, None for one per second; overridden by the segment's, if it has one.
        decoder: of video files, one of video_decoders.DECODERS; None for the one that the environment names.
        fit: resizes each picture as soon as it is decoded, so that full-size pictures are never held together.
    Raises: UnreadableMedia, BadSegment, InvalidRequest.
    """
    if not files:
        raise InvalidRequest("media is empty; send at least one file")
    if kind in ("video", "image") and len(files) != 1:
        raise InvalidRequest(f"{kind} takes exactly one file, found {len(files)}; send pictures as kind frames")
    for position, file in enumerate(files):
        if not file:
            raise UnreadableMedia(f"file {position + 1} of {len(files)} is empty (0 bytes)")
    if kind in MEDIA_KINDS:
        segment.refuse_for(kind)
    num_frames = segment.num_frames or num_frames
    last = _Last(fit)
    if kind == "image":
        return _timeless([fit(open_array(files[0])[0] if is_array(files[0]) else open_image(files[0]))])
    if kind == "video":
        if is_array(files[0]):
            raise InvalidRequest("raw frames (.npy) must be sent as kind frames, not video")
        load = load_gif if files[0][:4] == b"GIF8" else frame_decoder(decoder)
        return _pad(load(files[0], segment, num_frames, last), num_frames, last)
    if kind == "folder":
        index = choose_in_segment(len(files), FOLDER_RATE, segment, num_frames)[:MAX_FRAMES]
        return _pad(Frames([last(open_image(files[i])) for i in index], index, index / FOLDER_RATE), num_frames, last)
    if kind == "frames":
        return _pad(_load_frames(files, last), num_frames, last)
    raise InvalidRequest(f"media_kind is {kind!r}; it takes video, image, frames or folder")


# --- gifs and raw frames -----------------------------------------------------------------------------------------------


def load_gif(data: bytes, segment: Segment, num_frames: int | None, fit: Fit = as_it_is) -> Frames:
    """The chosen frames of a gif, assuming 25 per second; repeated indices are returned once. Raises: UnreadableMedia."""
    with open_picture(data) as gif:
        available = getattr(gif, "n_frames", 1)
        limits.GIF_FRAMES.check(available, "the gif", UnreadableMedia)
        index = np.unique(choose_in_segment(available, GIF_RATE, segment, num_frames))[:MAX_FRAMES]
        rgb = []
        for position in range(int(index[-1]) + 1):
            gif.seek(position)
            check_size(*gif.size)  # a frame that exceeds the canvas enlarges it
            limits.GIF_PIXELS.check((int(index[-1]) + 1) * gif.width * gif.height, "the gif", UnreadableMedia)
            if position in index:
                rgb.append(fit(np.asarray(gif.convert("RGB"))))
    return Frames(rgb, index, index / GIF_RATE)


def _load_frames(files: Sequence[bytes], fit: Fit) -> Frames:
    pictures: list[np.ndarray] = []
    for file in files[:MAX_FRAMES]:
        frames = open_array(file)[: MAX_FRAMES - len(pictures)] if is_array(file) else [open_image(file)]
        pictures.extend(map(fit, frames))
        if len(pictures) >= MAX_FRAMES:
            break
    return _timeless(pictures)


def _timeless(pictures: list[np.ndarray]) -> Frames:
    return Frames(pictures, np.arange(len(pictures), dtype=np.int64), np.full(len(pictures), math.nan))


class _Last:
    """A `fit` that remembers the size of its last picture: black frames are created at that size."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self.height = self.width = 0

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        self.height, self.width = picture.shape[:2]
        return self.fit(picture)


def _pad(frames: Frames, num_frames: int | None, last: _Last) -> Frames:
    """Append black frames up to num_frames, then cut to MAX_FRAMES."""
    missing = max((num_frames or 1) - len(frames.rgb), 0)
    if missing:
        # The reference swaps width and height from one black frame to the next; only padding to squares makes it visible.
        sizes = ((last.width, last.height), (last.height, last.width))
        black = [last.fit(np.zeros((*size, 3), np.uint8)) for size in sizes]
        frames = Frames(
            [*frames.rgb, *(black[number % 2] for number in range(missing))],
            np.append(frames.index, np.full(missing, -1, np.int64)),
            np.append(frames.time, np.full(missing, math.nan)),
        )
    return Frames(frames.rgb[:MAX_FRAMES], frames.index[:MAX_FRAMES], frames.time[:MAX_FRAMES])
