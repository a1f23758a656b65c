"""Frames -> uint8 pixels at the vision tower's input size.

Rescaling and normalization are part of the encoder's graph (vision.py), so that pixels are transferred as uint8: a quarter
of the bytes. Pillow's bicubic filter, width first, gives the reference's pixels exactly.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from videollama_core.model.config import PixelConfig
from videollama_core.protocol import limits
from videollama_core.protocol.errors import UnreadableMedia


def to_tower_size(pictures: Sequence[np.ndarray], config: PixelConfig, pad: bool = False) -> np.ndarray:
    """Resize (and crop) pictures as the tower's image processor does.

    Args:
        pictures: T arrays, uint8 [H, W, 3].
        pad: first pad them to squares with the mean colour (as in fine-tuning; inference does not).
    Returns: uint8 [T, S, S, 3]. An array that occurs several times in the list is resized once.
    Raises: UnreadableMedia as `fit_picture` does.
    """
    fitted: dict[int, np.ndarray] = {}
    for picture in pictures:
        if id(picture) not in fitted:
            fitted[id(picture)] = fit_picture(picture, config, pad)
    return np.stack([fitted[id(picture)] for picture in pictures])


def fit_picture(picture: np.ndarray, config: PixelConfig, pad: bool = False) -> np.ndarray:
    """One picture, uint8 [H, W, 3] -> [S, S, 3]. Raises: UnreadableMedia if an intermediate size is too large."""
    source = pad_to_square(picture, config.mean_colour) if pad else picture
    return _crop_resize(source, config.size) if config.crop else _squash(source, config.size)


def pad_to_square(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Centre the picture on a square of its longer side."""
    height, width = picture.shape[:2]
    if height == width:
        return picture
    side = max(height, width)
    limits.RESIZED_PIXELS.check(side * side, f"a picture of {width}x{height} padded to a square", UnreadableMedia)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def _squash(picture: np.ndarray, size: int) -> np.ndarray:
    return _resize(picture, size, size)


def _crop_resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to `size`, then the centre square."""
    height, width = picture.shape[:2]
    wide, high = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    limits.RESIZED_PIXELS.check(wide * high, f"a picture of {width}x{height} resized to {wide}x{high}", UnreadableMedia)
    left, top = (wide - size) // 2, (high - size) // 2
    return _resize(picture, wide, high, (left, top, left + size, top + size))


def _resize(picture: np.ndarray, width: int, height: int, part: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Bicubic, the width and then the height, each rounded to uint8: Pillow 10.4's result with any Pillow version.

    Args:
        part: left, top, right and bottom of the part of the result to return; None for all of it.
    Two calls, because in one Pillow chooses the order of the passes; 13 shrinks a tall picture's height first
    (python-pillow #9549).
    """
    left, top, right, bottom = part or (0, 0, width, height)
    # Compute only what the part depends on: crop rows before the width pass, and columns after it. The height pass must
    # still get the full height, or its filter positions would be rounded differently.
    rows = picture.shape[0]
    scale = rows / height
    reach = 2 * max(scale, 1.0) + 2  # support of the bicubic filter, with a margin
    first, last = max(int(top * scale - reach), 0), min(int(bottom * scale + reach) + 1, rows)
    image = Image.fromarray(picture[first:last]).resize((width, last - first), Image.Resampling.BICUBIC)
    if right - left < width:
        image = image.crop((left, 0, right, last - first))
    if last - first < rows:
        narrow, image = image, Image.new("RGB", (right - left, rows))
        image.paste(narrow, (0, first))
    return np.asarray(image.resize((right - left, height), Image.Resampling.BICUBIC))[top:bottom]
