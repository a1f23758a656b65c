"""Generates clips of any length: ten seconds are encoded once, and longer clips repeat their packets."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

RATE, UNIT = 30, 10  # frames per second; encoded seconds
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "veryfast", "crf": "26"}),
    "hevc": ("libx265", {"preset": "superfast", "crf": "28", "x265-params": "log-level=none:no-open-gop=1"}),
    "vp9": ("libvpx-vp9", {"deadline": "good", "cpu-used": "5", "crf": "36", "b": "0", "row-mt": "1"}),
    "av1": ("libsvtav1", {"preset": "11", "crf": "40"}),
}


@contextmanager
def kept_scheduling() -> Iterator[None]:
    """Restore the calling thread's scheduling policy at the end of the context.

    SVT-AV1 gives its caller real-time priority (SCHED_FIFO 99) if permitted, as root is, and never resets it: the process and
    its children would then starve all other processes.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


@dataclass(frozen=True)
class Clip:
    """A generated clip, 16:9, by what decides how long it takes to decode."""

    codec: str
    height: int
    seconds: int
    group: int  # maximum number of frames from one keyframe to the next

    @property
    def name(self) -> str:
        return f"{self.codec} {self.height}p {self.seconds} s, groups of {self.group}"

    def file(self, folder: Path) -> Path:
        """Path of the clip in a folder; encoded if missing."""
        path = folder / f"{self.codec}_{self.height}_{self.group}_{self.seconds}.mp4"
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.mp4")
        if self.seconds == UNIT:
            self._encode(unfinished)
        else:
            unit = Clip(self.codec, self.height, UNIT, self.group).file(folder)
            _repeat(unit, unfinished, self.seconds // UNIT)
        return unfinished.rename(path)

    def _encode(self, path: Path) -> None:
        codec, options = CODECS[self.codec]
        width = self.height * 16 // 9
        scene = _scene(width, self.height)
        random = np.random.default_rng(1)
        grain = random.normal(0, 2.5, (self.height + 64, width + 64, 1)).round().astype(np.int16)  # sensor noise
        with kept_scheduling(), av.open(str(path), "w") as output:
            stream: Any = output.add_stream(codec, rate=RATE, options={**options, "g": str(self.group)})
            stream.width, stream.height, stream.pix_fmt = width, self.height, "yuv420p"
            for number in range(RATE * UNIT):
                top, left = int(150 + 140 * np.sin(number / 50)), int(150 + 140 * np.cos(number / 40))
                frame = scene[top : top + self.height, left : left + width].copy()
                for place in range(5):  # objects that move independently
                    size, row = self.height // (4 + place), place * self.height // 6
                    at = (number * (3 + 2 * place) + place * width // 5) % (width - size)
                    frame[row : row + size, at : at + size] = scene[row : row + size, place : place + size]
                y, x = random.integers(0, 64, 2)
                frame = np.clip(frame + grain[y : y + self.height, x : x + width], 0, 255).astype(np.uint8)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode(None))


def _scene(width: int, height: int) -> np.ndarray:
    """Noise of several scales, larger than a frame: uint8 [height + 300, width + 300, 3]."""
    random = np.random.default_rng(0)
    size = (width + 300, height + 300)
    layers = []
    for grain in (64, 16, 4, 1):
        small = random.integers(0, 256, (size[1] // grain + 1, size[0] // grain + 1, 3), np.uint8)
        layers.append(np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), np.float32))
    mixed = sum(share * layer for share, layer in zip((0.5, 0.3, 0.18, 0.02), layers, strict=True))
    return np.asarray(mixed).astype(np.uint8)


def _repeat(source: Path, target: Path, times: int) -> None:
    with av.open(str(target), "w") as output:
        stream: Any = None
        offset = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                stream = stream or output.add_stream_from_template(video, opaque=True)
                end = 0
                for packet in container.demux(video):
                    if not packet.size or packet.pts is None or packet.dts is None:
                        continue
                    end += packet.duration or 0
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = stream
                    output.mux(packet)
                offset += end
