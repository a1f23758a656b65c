"""Turn the caller's media into what is sent: a kind, and either encoded files or the URL of one."""

import hashlib
import io
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from videollama_core.protocol.errors import InvalidRequest, UnreadableMedia, printable, shown
from videollama_core.protocol.limits import MEDIA_BYTES, MEDIA_FILES, MEDIA_URL_CHARACTERS

Source = str | os.PathLike[str] | bytes | np.ndarray
Video = Source | Sequence[Source]
SOURCES = ("video", "image", "audio", "video_url", "image_url", "audio_url")


@dataclass(frozen=True)
class Media:
    """Media as they are sent: the bytes of files, or a URL."""

    kind: str  # of contract.MEDIA_KINDS
    files: tuple[bytes, ...] = ()
    url: str | None = None  # instead of files: the server fetches it


def read_media(
    video: Video | None = None,
    image: Source | None = None,
    audio: Source | None = None,
    with_audio: bool | None = False,
    video_url: str | None = None,
    image_url: str | None = None,
    audio_url: str | None = None,
) -> Media | None:
    """Read the media that a question is about; None if it has none.

    Args:
        video: path of a file or of a folder of frames, encoded bytes, uint8 [T, H, W, 3], or a list of frames (arrays,
            paths of pictures, encoded pictures).
        image: path, encoded bytes or uint8 [H, W, 3].
        audio: path or encoded bytes of an audio file.
        with_audio: use the video's audio track as well.
        video_url, image_url, audio_url: a URL that the server fetches.
    Raises: InvalidRequest, UnreadableMedia.
    """
    given = dict(zip(SOURCES, (video, image, audio, video_url, image_url, audio_url), strict=True))
    names = [name for name, source in given.items() if source is not None]
    if len(names) > 1:
        raise InvalidRequest(
            f"found {' and '.join(names)}; send only one of them (with_audio uses the audio track of a video)"
        )
    if not isinstance(with_audio, (bool, np.bool_, type(None))):
        raise InvalidRequest(f"with_audio is {shown(with_audio)}; it takes True or False")
    if with_audio and video_url is None and (video is None or not _is_one_file(video)):
        raise InvalidRequest(
            "with_audio needs a video file: frames, folders, images and audio files have no audio track"
        )
    if not names:
        return None
    name = names[0]
    kind = "video_with_audio" if with_audio else name.removesuffix("_url")
    if name.endswith("_url"):
        return Media(kind, url=_checked_url(name, given[name]))
    if video is not None:
        return _read_video(video, kind)
    if isinstance(audio, np.ndarray):
        raise InvalidRequest("audio is an array; it takes a path or the bytes of an audio file")
    return Media(kind, (_read_one(cast("Source", given[name]), 3, MEDIA_BYTES.value),))


def _read_video(video: Video, kind: str) -> Media:
    """Read a video in any of its forms; `kind` is that of a single file."""
    if isinstance(video, (list, tuple)):
        if not video:
            raise InvalidRequest("the list of frames is empty; send at least one")
        return Media("frames", _read_all(video))
    if isinstance(video, (str, os.PathLike)) and _is_folder(video):
        return Media("folder", _read_all(_pictures_of(Path(video))))
    if isinstance(video, np.ndarray):
        kind = "frames"
    return Media(kind, (_read_one(cast("Source", video), 4, MEDIA_BYTES.value),))


def digest_of(items: Sequence[bytes]) -> str:
    """SHA-256, in hex, of media as sent: each file, or the URL, after its length (4 bytes, little-endian)."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(struct.pack("<I", len(item)))
        digest.update(item)
    return digest.hexdigest()


def _checked_url(name: str, url: Any) -> str:
    if not isinstance(url, str) or not url:
        raise InvalidRequest(f"{name} is {shown(url)}; it takes a URL, such as https://media.example.org/clip.mp4")
    MEDIA_URL_CHARACTERS.check(len(url), name)
    return url


def _is_folder(path: str | os.PathLike[str]) -> bool:
    return os.path.isdir(path)  # also False for what cannot be a path


def _is_one_file(video: Video) -> bool:
    if isinstance(video, (str, os.PathLike)):
        return not _is_folder(video)
    return isinstance(video, (bytes, bytearray, memoryview))


def _read_all(sources: Sequence[Source]) -> tuple[bytes, ...]:
    """Raises: InvalidRequest for too many files, and as soon as their total size exceeds the limit."""
    MEDIA_FILES.check(len(sources), "the media")
    files: list[bytes] = []
    left = MEDIA_BYTES.value
    for source in sources:
        files.append(_read_one(source, 3, left))
        left -= len(files[-1])
    return tuple(files)


def _read_one(source: Source, dimensions: int, most: int) -> bytes:
    """
    Args:
        dimensions: of an array, 4 for a video and 3 for a picture.
        most: how many bytes the limit still allows.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != dimensions or source.shape[-1] != 3 or source.size == 0:
            shape = "[T, H, W, 3]" if dimensions == 4 else "[H, W, 3]"
            raise UnreadableMedia(
                f"the array is {source.dtype} {list(source.shape)}; wanted uint8 {shape} with no empty axis"
            )
        _check_size(source.nbytes, most)
        buffer = io.BytesIO()
        np.save(buffer, source)
        return buffer.getvalue()
    if isinstance(source, (bytes, bytearray, memoryview)):
        _check_size(memoryview(source).nbytes, most)
        return bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidRequest(f"media is a {type(source).__name__}; it takes a path, bytes, an array or a list of them")
    return _read_file(source, most)


def _read_file(source: str | os.PathLike[str], most: int) -> bytes:
    name = printable(str(source))[:200]
    try:
        # Without O_NONBLOCK, opening a fifo or a device may block forever.
        with open(os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableMedia(f"{name} is a folder, a pipe or a device; name a regular file")
            _check_size(status.st_size, most)
            content = file.read(most + 1)
            _check_size(len(content), most)
            return content
    except OSError as error:
        raise UnreadableMedia(f"{name} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:  # it holds a NUL or a lone surrogate
        raise UnreadableMedia(f"{name} is not a valid path: {error}") from error


def _pictures_of(folder: Path) -> list[Path]:
    """The files of a folder in lexicographic order, as in the reference (frame_10 comes before frame_2)."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise UnreadableMedia(f"{folder} cannot be read: {error.strerror}") from error
    if not paths:
        raise UnreadableMedia(f"{folder} holds no files; a folder must hold the frames of a video as pictures")
    return paths


def _check_size(size: int, most: int) -> None:
    if size > most:
        whole = MEDIA_BYTES.value
        rest = "" if most == whole else f", {whole - most + size} with the files before it"
        raise InvalidRequest(
            f"the media has {size} bytes{rest}; the limit of a request is {whole}; shorten or re-encode it"
        )
