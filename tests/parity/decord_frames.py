"""Run by an environment with decord 0.6.0 and Pillow 10.4: FILES... -> beside each, NAME.npz with its frames and pixels.

One file a process: decord may abort. Prints what decord says of a file that it cannot read.
"""

import sys

import numpy as np
from decord import VideoReader
from PIL import Image


def siglip(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((384, 384), Image.Resampling.BICUBIC))


for path in sys.argv[1:]:
    reader = VideoReader(path, num_threads=1)
    frames = reader.get_batch(list(range(len(reader)))).asnumpy()
    np.savez(f"{path}.npz", frames=frames, pixels=siglip(frames[len(frames) // 2]), rate=reader.get_avg_fps())
