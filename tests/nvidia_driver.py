"""Builds the stand-in driver of nvidia_driver.c, and computes what a picture decoded by it looks like."""

import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from videollama_core.media.nvdec_file import LIBRARIES
from videollama_core.media.rgb import ToRgb

SOURCE = Path(__file__).with_suffix(".c")
CHROMA = (90, 170)
H264_SLICES = (1, 5)


def build_driver(folder: Path) -> str:
    """Code for the start of a Python process that makes it use this driver."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler, or no Linux, for the driver that stands in for NVIDIA's")
    made = [folder / library for library in LIBRARIES]
    for path in made:
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, SOURCE], check=True, timeout=60
        )
    return f"import ctypes; held = [ctypes.CDLL(path) for path in {[str(path) for path in made]}]"


def expected(path: Path) -> list[np.ndarray]:
    """The pictures of an H.264 MP4 in display order, not rotated: uint8 [H, W, 3], each of one colour."""
    pictures = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            if packet.size:
                value = 16 + sum(map(_sum, _slices(bytes(packet)))) % 200
                pictures[packet.pts] = _picture(value, stream.codec_context.width, stream.codec_context.height)
    return [pictures[pts] for pts in sorted(pictures)]


def _slices(packet: bytes) -> list[bytes]:
    units, place = [], 0
    while place < len(packet):
        begin = place + 4
        place = begin + int.from_bytes(packet[place:begin])
        units.append(packet[begin:place])
    return [unit for unit in units if unit[0] & 31 in H264_SLICES]


def _sum(unit: bytes) -> int:
    return 1 + sum(unit)  # with its start code, 00 00 01


def _picture(luma: int, width: int, height: int) -> np.ndarray:
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane, value in zip(frame.planes, (luma, *CHROMA), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    return ToRgb()(frame)
