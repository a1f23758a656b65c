"""Encoded pictures, gifs and raw frames (.npy) -> uint8 [H, W, 3]; what one may ask for is checked before it is decoded."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from videollama_core.protocol import limits
from videollama_core.protocol.errors import UnreadableMedia, VideoLlamaError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")  # Pillow knows more, and starts Ghostscript for one
# The header that numpy writes for uint8 of 3 or 4 dimensions.
_ARRAY_HEADER = re.compile(rb"\{'descr': '\|u1', 'fortran_order': (False|True), 'shape': \(([\d, ]{1,80})\), \} *\n")
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # those with a length, and the end
_SCAN, _END = 0xDA, 0xD9


@contextmanager
def reading_picture() -> Iterator[None]:
    """Raises: UnreadableMedia for whatever Pillow raises; damaged files make it raise almost anything."""
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
    """Raises: UnreadableMedia if one picture is too large, or too long and narrow, to be decoded and resized."""
    what = f"a picture of {width}x{height}"
    limits.PICTURE_PIXELS.check(width * height, what, UnreadableMedia)
    limits.PICTURE_SIDE.check(max(width, height), what, UnreadableMedia)
    if min(width, height) > 0:
        limits.ASPECT_RATIO.check(max(width, height) / min(width, height), what, UnreadableMedia)


@contextmanager
def open_picture(data: bytes) -> Iterator[Image.Image]:
    """A picture whose header was read and whose size can be decoded. Raises: UnreadableMedia, within the block too."""
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
    """Passes over the picture that a jpeg wants: one, or about ten if it is progressive."""
    position, scans = 2, 0
    while (found := _JPEG_MARKER.search(data, position)) is not None and data[found.end() - 1] != _END:
        scans += data[found.end() - 1] == _SCAN
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans


def open_image(data: bytes) -> np.ndarray:
    """An encoded picture -> uint8 [H, W, 3]; alpha is dropped and the EXIF orientation ignored, as in the reference."""
    with open_picture(data) as picture:
        return np.asarray(picture.convert("RGB"))


# --- raw frames --------------------------------------------------------------------------------------------------------


def is_array(data: bytes) -> bool:
    return data[:6] == b"\x93NUMPY"


def open_array(data: bytes) -> np.ndarray:
    """.npy bytes of uint8 [H, W, 3] or [T, H, W, 3] -> uint8 [T, H, W, 3] in the same memory.

    Nothing but this type and these shapes, as numpy writes them, is read; the file must be as long as its header says.
    """
    size = 2 if data[6:7] == b"\x01" else 4  # bytes of the header's length
    start = 8 + size
    length = int.from_bytes(data[8:start], "little")
    header = data[start : start + min(length, 512)]
    found = _ARRAY_HEADER.fullmatch(header)
    shape = [int(part) for part in found[2].split(b",") if part.strip()] if found else []
    if found is None or len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape:
        raise UnreadableMedia(
            "the raw frames are not a valid .npy file of the type wanted: wanted uint8 [H, W, 3] or [T, H, W, 3] with "
            f"nothing empty, found {header[:100].decode('ascii', 'replace').strip()!r}"
        )
    pictures = np.frombuffer(data, np.uint8, offset=start + length)
    if len(pictures) != np.prod(shape, dtype=object):
        raise UnreadableMedia(f"the raw frames are cut off or too long: {len(pictures)} bytes for uint8 {shape}")
    check_size(shape[-2], shape[-3])
    array = pictures.reshape(shape, order="F" if found[1] == b"True" else "C")
    return array if len(shape) == 4 else array[None]
