"""Methods from a file to pixels, each measured in a separate process: processor time, and memory above the start.

`ours` is the service's method. `plain` is given the wanted frames, and decodes from the first packet to the last wanted frame.
`limit` has exactly the packets that the wanted frames need in memory: it neither opens nor searches a file. `limit of keyframes`
does the same for keyframes.
"""

import importlib.util
import io
import os
import pickle
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from videollama_core.checkpoint.read_config import published_config
from videollama_core.media.decoding.container import deadline, open_container, video_stream
from videollama_core.media.decoding.frame_index import read_index
from videollama_core.media.decoding.sparse import decode_sparsely
from videollama_core.media.decoding.video_file import decode_video
from videollama_core.media.pixels import fit_picture
from videollama_core.media.rgb import ToRgb
from videollama_core.media.video import Segment, choose_frames
from videollama_server.machine.memory import keep_freed

FRAMES = 8
FIT = partial(fit_picture, config=published_config("VideoLLaMA2-7B").pixels)  # CLIP at 336


def ours(data: bytes) -> Callable[[], np.ndarray]:
    return lambda: np.stack(decode_video(data, Segment(), FRAMES, FIT).rgb)


def keyframes(data: bytes) -> Callable[[], np.ndarray]:
    """The approximation that a request can choose: its pixels differ from those of the other methods."""
    return lambda: np.stack(decode_video(data, Segment(sampling="keyframes"), FRAMES, FIT).rgb)


def plain(data: bytes) -> Callable[[], np.ndarray]:
    """PyAV's plain loop over all frames up to the last wanted one, in one thread."""
    wanted = _wanted(data)

    def run() -> np.ndarray:
        pictures, to_rgb = [], ToRgb()
        with av.open(io.BytesIO(data), mode="r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    pictures.append(to_rgb(frame))
                if number == wanted[-1]:
                    break
        return np.stack([FIT(picture) for picture in pictures])

    return run


def decord(data: bytes) -> Callable[[], np.ndarray]:
    """decord, with one thread."""
    module: Any = importlib.import_module("decord")
    wanted = _wanted(data)

    def run() -> np.ndarray:
        pictures = module.VideoReader(io.BytesIO(data), num_threads=1).get_batch(wanted).asnumpy()
        return np.stack([FIT(picture) for picture in pictures])

    return run


def limit(data: bytes, by_keyframes: bool = False) -> Callable[[], np.ndarray]:
    """Decode packets from memory instead of seeking and reading a container."""
    with open_container(data) as container:
        stream = video_stream(container)
        index = read_index(container, stream, deadline())
        held: list[Any] = []
        container.seek(0, stream=stream)
        wanted = choose_frames(index.available, FRAMES)
        if by_keyframes:
            wanted = index.nearest_keys(wanted, 0, index.available - 1)
        needed = index.packets_of(wanted)
        spans = [(index.start_of(int(packet)), int(packet)) for packet in needed]
        for number, packet in enumerate(container.demux(stream)):
            kept = packet.size and any(first <= number <= last for first, last in spans)
            held.append(packet if kept else None)
    opened = open_container(data)
    stream = video_stream(opened)
    memory = _Memory(opened, held, index)

    def run() -> np.ndarray:
        frames = decode_sparsely(memory, stream, index, wanted, deadline(), FIT)  # type: ignore[arg-type]
        assert frames is not None
        return np.stack([frames[number][0] for number in wanted.tolist()])

    return run


class _Memory:
    """Replaces a container: serves its packets from memory, to be decoded by the stream of a second opening of the file."""

    def __init__(self, container: Any, packets: list[Any], index: Any) -> None:
        self._container, self._packets = container, packets
        self._number_at = {pts: number for number, pts in enumerate(index.pts.tolist())}
        self._next = 0

    def seek(self, pts: int, stream: Any) -> None:
        stream.codec_context.flush_buffers()
        self._next = self._number_at[pts]

    def demux(self, stream: Any) -> Any:
        for packet in self._packets[self._next :]:
            packet.stream = stream
            yield packet


METHODS: dict[str, Callable[[bytes], Callable[[], np.ndarray]]] = {
    "ours": ours,
    "keyframes": keyframes,
    "plain loop": plain,
    "decord": decord,
    "limit": limit,
    "limit of keyframes": partial(limit, by_keyframes=True),
}


def methods() -> dict[str, Callable[[bytes], Callable[[], np.ndarray]]]:
    """The available methods; decord only if it is installed."""
    return {name: method for name, method in METHODS.items() if name != "decord" or importlib.util.find_spec("decord")}


def _wanted(data: bytes) -> list[int]:
    with open_container(data) as container:
        return choose_frames(read_index(container, video_stream(container), deadline()).available, FRAMES).tolist()


# --- one measurement -----------------------------------------------------------------------------------------------------


def measure_forked(method: str, path: Path) -> dict[str, Any]:
    """Run a method in a forked process. Returns: `seconds` of processor time, `megabytes` above the start, `pixels`; or `error`."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as file:
                pickle.dump(_measure(method, path), file)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(content) if content else {"error": "the process died"}


def _measure(method: str, path: Path) -> dict[str, Any]:
    try:
        keep_freed()  # as in the service's decoding processes, for all methods
        run = METHODS[method](path.read_bytes())
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the current size
        start, began = _resident("VmRSS"), time.process_time()
        pixels = run()
        seconds = time.process_time() - began
        return {"seconds": seconds, "megabytes": _resident("VmHWM") - start, "pixels": pixels}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}


def _resident(name: str) -> float:
    """A size of /proc/self/status in MiB."""
    match = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024
