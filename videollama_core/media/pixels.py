"""Frames -> uint8 pixels at the size the vision tower wants.

Rescaling and normalisation are in the encoder's graph (vision.py), so that pixels travel as uint8: a quarter of the
bytes. Pillow's bicubic filter, width first, gives the reference's pixels exactly.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from videollama_core.model.config import PixelConfig


def to_tower_size(pictures: Sequence[np.ndarray], config: PixelConfig, pad: bool = False) -> np.ndarray:
    """Resize (and crop) pictures as the tower's image processor does.

    Args:
        pictures: T arrays, uint8 [H, W, 3].
        pad: first make them square with bars of the mean colour (fine-tuning did, inference does not).
    Returns: uint8 [T, S, S, 3]. A picture that occurs twice in the list is resized once.
    """
    done: dict[int, np.ndarray] = {}
    for picture in pictures:
        if id(picture) not in done:
            source = pad_to_square(picture, config.mean_colour) if pad else picture
            done[id(picture)] = _crop_resize(source, config.size) if config.crop else _squash(source, config.size)
    return np.stack([done[id(picture)] for picture in pictures])


def pad_to_square(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Centre the picture on a square of its longer side."""
    height, width = picture.shape[:2]
    if height == width:
        return picture
    side = max(height, width)
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
    if width <= height:
        resized = _resize(picture, size, int(size * height / width))
    else:
        resized = _resize(picture, int(size * width / height), size)
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    return resized[top : top + size, left : left + size]


def _resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bicubic, the width and then the height, each rounded to uint8: Pillow 10.4's result by any Pillow.

    One call leaves the order of the two passes to Pillow; 13 shrinks a tall picture's height first (python-pillow #9549).
    """
    image = Image.fromarray(picture)
    for size in ((width, image.height), (width, height)):
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)
