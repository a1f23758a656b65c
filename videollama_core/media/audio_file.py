"""A sound file -> its samples: by libsndfile, as the reference reads it, or by FFmpeg where libsndfile does not know the format.

The two agree in wav and flac, and up to rounding in mp3 and Vorbis. Opus is where they part: libsndfile decodes at the rate
the sound was recorded at (8 kHz of a telephone), FFmpeg always at 48 kHz.
"""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
import soundfile

from videollama_core.media.video_file import DECODE_SECONDS, open_container, reason
from videollama_core.protocol.errors import UnreadableMedia

MAX_RATE = 384_000  # samples per second of a file
MAX_SAMPLES = MAX_RATE * 3600  # decoded at most
BLOCK = 1 << 16  # samples read at once; short ones (1,000) change the samples of an mp3


@contextmanager
def open_sound(data: bytes) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """Samples per second, and the first channel in parts: float64 in [-1, 1]. Raises: UnreadableMedia."""
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except (soundfile.LibsndfileError, TypeError):
        with open_container(data) as container:
            if not container.streams.audio:
                raise UnreadableMedia(
                    "the file has no sound; send a wav, flac, mp3, ogg, m4a or a video with sound"
                ) from None
            yield _checked(container.streams.audio[0].rate), decode_track(container)
        return
    with file:
        yield _checked(file.samplerate), _blocks(file)


def _checked(rate: int | None) -> int:
    if not rate or not 1000 <= rate <= MAX_RATE:
        raise UnreadableMedia(f"the sound has {rate} samples per second; 1000 to {MAX_RATE} can be heard")
    return rate


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    deadline, taken = time.monotonic() + DECODE_SECONDS, 0
    try:
        file.seek(0)  # soundfile.read begins so, and Opus decodes otherwise without it
        while len(block := file.read(BLOCK, dtype="float64", always_2d=True)):
            yield block[:, 0]
            taken += len(block)
            _check_bounds(taken, deadline)
    except soundfile.LibsndfileError as error:
        if not taken:
            raise UnreadableMedia(f"the sound cannot be decoded: {error}") from error


def decode_track(
    container: "av.container.InputContainer", resampler: av.AudioResampler | None = None
) -> Iterator[np.ndarray]:
    """Yields the samples of the first track: float64 of its first channel, or whatever the resampler makes."""
    deadline, taken = time.monotonic() + DECODE_SECONDS, 0
    stream = container.streams.audio[0]
    try:
        for frame in container.decode(stream):
            for part in resampler.resample(frame) if resampler else (frame,):
                samples = part.to_ndarray()
                yield samples[0] if resampler else _first_channel(samples, part)
                taken += part.samples
            _check_bounds(taken, deadline)
        for part in resampler.resample(None) if resampler else ():
            yield part.to_ndarray()[0]
    except (av.FFmpegError, ValueError) as error:
        if not taken:
            raise UnreadableMedia(f"the sound cannot be decoded: {reason(error)}") from error


def _check_bounds(taken: int, deadline: float) -> None:
    if taken > MAX_SAMPLES or time.monotonic() > deadline:
        raise UnreadableMedia(f"the sound takes more than {DECODE_SECONDS:g} s to decode; send a shorter one")


def _first_channel(samples: np.ndarray, frame: av.AudioFrame) -> np.ndarray:
    channels = 1 if frame.format.is_planar else len(frame.layout.channels)
    first = samples[0][::channels]
    if first.dtype == np.uint8:
        return (first.astype(np.float64) - 128.0) / 128.0
    if first.dtype.kind == "i":
        return first / -float(np.iinfo(first.dtype).min)
    return first.astype(np.float64)
