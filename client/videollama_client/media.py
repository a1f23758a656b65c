"""What a caller has in hand -> media as it travels: a kind and encoded files."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videollama_core.protocol.contract import MAX_MEDIA_BYTES
from videollama_core.protocol.errors import InvalidRequest, UnreadableMedia

Source = str | os.PathLike[str] | bytes | np.ndarray
Video = Source | Sequence[Source]


@dataclass(frozen=True)
class Media:
    kind: str  # of contract.MEDIA_KINDS
    files: tuple[bytes, ...]


def read_media(
    video: Video | None = None, image: Source | None = None, audio: Source | None = None, with_audio: bool = False
) -> Media | None:
    """Read what a question is about.

    Args:
        video: path of a file or of a folder of frames, encoded bytes, uint8 [T, H, W, 3], or a list of frames (arrays,
            paths of pictures, encoded pictures).
        image: path, encoded bytes or uint8 [H, W, 3].
        audio: path or encoded bytes of a sound file.
        with_audio: use the video's audio track as well.
    Raises: InvalidRequest, UnreadableMedia.
    """
    found = [name for name, one in (("video", video), ("image", image), ("audio", audio)) if one is not None]
    if len(found) > 1:
        raise InvalidRequest(f"found {' and '.join(found)}; one question is about one of them (a video may have sound)")
    if with_audio and (video is None or not _is_one_file(video)):
        raise InvalidRequest("with_audio needs a video file: frames, folders, images and sounds have no sound track")
    if audio is not None:
        if isinstance(audio, np.ndarray):
            raise InvalidRequest("audio is an array; it takes a path or the bytes of a sound file")
        return _limited(Media("audio", (_read_one(audio, 1),)))
    if image is not None:
        return _limited(Media("image", (_read_one(image, 3),)))
    if video is None:
        return None
    if isinstance(video, (list, tuple)):
        if not video:
            raise InvalidRequest("the list of frames is empty; send at least one")
        return _limited(Media("frames", tuple(_read_one(frame, 3) for frame in video)))
    if isinstance(video, np.ndarray):
        return _limited(Media("frames", (_read_one(video, 4),)))
    if isinstance(video, (str, os.PathLike)) and Path(video).is_dir():
        return _limited(Media("folder", _read_folder(Path(video))))
    return _limited(Media("video_with_audio" if with_audio else "video", (_read_one(video, 4),)))  # type: ignore[arg-type]


def _is_one_file(video: Video) -> bool:
    if isinstance(video, (str, os.PathLike)):
        return not Path(video).is_dir()
    return isinstance(video, (bytes, bytearray, memoryview))


def _read_one(source: Source, dimensions: int) -> bytes:
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != dimensions or source.shape[-1] != 3 or source.size == 0:
            shape = "[T, H, W, 3]" if dimensions == 4 else "[H, W, 3]"
            raise UnreadableMedia(
                f"the array is {source.dtype} {list(source.shape)}; wanted uint8 {shape} with nothing empty"
            )
        buffer = io.BytesIO()
        np.save(buffer, source)
        return buffer.getvalue()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidRequest(f"media is a {type(source).__name__}; it takes a path, bytes, an array or a list of them")
    path = Path(source)
    try:
        size = path.stat().st_size
        if size > MAX_MEDIA_BYTES:
            raise InvalidRequest(f"{path} has {size} bytes; the limit is {MAX_MEDIA_BYTES}: cut or re-encode it")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableMedia(f"{path} cannot be read: {error.strerror}") from error


def _read_folder(folder: Path) -> tuple[bytes, ...]:
    """Pictures in the plain order of their names, as the reference sorts them (frame_10 comes before frame_2)."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise UnreadableMedia(f"{folder} holds no files; a folder stands for the pictures of a video")
    return tuple(_read_one(path, 3) for path in paths)


def _limited(media: Media) -> Media:
    size = sum(map(len, media.files))
    if size > MAX_MEDIA_BYTES:
        raise InvalidRequest(f"the media has {size} bytes; the limit of a request is {MAX_MEDIA_BYTES}")
    return media
