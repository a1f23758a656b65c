"""Encoded pictures, gifs and raw frames (.npy) -> uint8 [H, W, 3]; their size is checked before they are decoded."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from videollama_core.protocol import limits
from videollama_core.protocol.errors import UnreadableMedia, VideoLlamaError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")  # Pillow supports more, and starts Ghostscript for EPS
# The header that numpy writes for uint8 of 3 or 4 dimensions.
_ARRAY_HEADER = re.compile(rb"\{'descr': '\|u1', 'fortran_order': (False|True), 'shape': \(([\d, ]{1,80})\), \} *\n")
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # markers with a length, and the end marker
_SCAN, _END = 0xDA, 0xD9


@contextmanager
def reading_picture() -> Iterator[None]:
    """Turn any exception of Pillow into UnreadableMedia; damaged files make it raise almost anything."""
    try:
        yield
    except VideoLlamaError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableMedia(f"the picture is too large: {error}") from error
    except MemoryError as error:
        raise UnreadableMedia("the picture takes more memory than a request may use; send a smaller one") from error
    except Exception as error:
        raise UnreadableMedia(f"the picture is damaged or cut off: {error or type(error).__name__}") from error


def check_size(width: int, height: int) -> None:
    """Raises: UnreadableMedia if a picture is too large, or too long and narrow, to be decoded and resized."""
    what = f"a picture of {width}x{height}"
    limits.PICTURE_PIXELS.check(width * height, what, UnreadableMedia)
    limits.PICTURE_SIDE.check(max(width, height), what, UnreadableMedia)
    if min(width, height) > 0:
        limits.ASPECT_RATIO.check(max(width, height) / min(width, height), what, UnreadableMedia)


@contextmanager
def open_picture(data: bytes) -> Iterator[Image.Image]:
    """Open a picture: its header is read and its size checked. Raises: UnreadableMedia, within the block too."""
    with reading_picture():
        try:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise UnreadableMedia(
                f"the file is not a picture that can be opened ({len(data)} bytes, beginning {data[:16].hex(' ')}); "
                f"send a {', '.join(FORMATS).lower()} file"
            ) from error
        with picture:
            check_size(*picture.size)
            if data[:2] == b"\xff\xd8":
                limits.SCAN_PIXELS.check(
                    _count_scans(data) * picture.width * picture.height, "the jpeg", UnreadableMedia
                )
            yield picture


def _count_scans(data: bytes) -> int:
    """Number of passes over the picture in a jpeg: one, or about ten if it is progressive."""
    position, scans = 2, 0
    while (marker := _JPEG_MARKER.search(data, position)) is not None and data[marker.end() - 1] != _END:
        scans += data[marker.end() - 1] == _SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


def open_image(data: bytes) -> np.ndarray:
    """An encoded picture -> uint8 [H, W, 3]; alpha is dropped and the EXIF orientation ignored, as in the reference.

    Raises: UnreadableMedia.
    """
    with open_picture(data) as picture:
        return np.asarray(picture.convert("RGB"))


# --- raw frames --------------------------------------------------------------------------------------------------------


def is_array(data: bytes) -> bool:
    """Whether the bytes are an .npy file."""
    return data[:6] == b"\x93NUMPY"


def open_array(data: bytes) -> np.ndarray:
    """.npy bytes of uint8 [H, W, 3] or [T, H, W, 3] -> uint8 [T, H, W, 3] in the same memory.

    Only this type and these shapes are accepted, with a header as numpy writes it and exactly the data that it declares.
    Raises: UnreadableMedia.
    """
    size = 2 if data[6:7] == b"\x01" else 4  # bytes of the header's length
    start = 8 + size
    length = int.from_bytes(data[8:start], "little")
    header = data[start : start + min(length, 512)]
    match = _ARRAY_HEADER.fullmatch(header)
    shape = [int(part) for part in match[2].split(b",") if part.strip()] if match else []
    if match is None or len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
        raise UnreadableMedia(
            "the raw frames are not a supported .npy file: expected uint8 [H, W, 3] or [T, H, W, 3] without empty axes, "
            f"found {header[:100].decode('ascii', 'replace').strip()!r}"
        )
    pixels = np.frombuffer(data, np.uint8, offset=start + length)
    if len(pixels) != np.prod(shape, dtype=object):
        raise UnreadableMedia(f"the raw frames are cut off or too long: {len(pixels)} bytes for uint8 {shape}")
    check_size(shape[-2], shape[-3])
    array = pixels.reshape(shape, order="F" if match[1] == b"True" else "C")
    return array if len(shape) == 4 else array[None]
