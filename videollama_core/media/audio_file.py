"""An audio file -> its samples: by libsndfile, as in the reference, or by FFmpeg for formats that libsndfile does not know.

The two agree exactly on wav and flac, and up to rounding on mp3 and Vorbis. They differ on Opus: libsndfile decodes at the
recording's original rate (such as a telephone's 8 kHz), FFmpeg always at 48 kHz.
"""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
import soundfile

from videollama_core.media.decoding.container import ADVICE, DECODER_ERRORS, deadline, open_container, reason
from videollama_core.protocol import limits
from videollama_core.protocol.errors import InvalidRequest, UnreadableMedia

LEAST_RATE = 1000  # samples per second of a file
BLOCK = 1 << 16  # samples read at once; with short blocks (1,000) the samples of an mp3 differ
# libsndfile's encodings that give the same samples after a seek. mp3, Vorbis and Opus do not.
_SEEKABLE = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")


class AudioReader:
    """An open audio file.

    Args:
        rate: samples per second.
        blocks: the first channel from sample 0 on, in parts: float64 in [-1, 1].
        file: libsndfile's, if seeking does not change its samples.
    """

    def __init__(self, rate: int, blocks: Iterator[np.ndarray], file: soundfile.SoundFile | None = None) -> None:
        self.rate, self._blocks, self._file = rate, blocks, file

    def read(self, first: int, last: int) -> tuple[np.ndarray, int]:
        """Samples first (inclusive) to last (exclusive), as far as they exist, and the position where reading ended.

        Raises: UnreadableMedia.
        """
        position = 0
        if self._file is not None:
            position = min(first, self._file.frames)
            try:
                self._file.seek(position)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise UnreadableMedia(f"the audio cannot be decoded: {error}") from error
        chunks = [np.zeros(0)]
        for samples in self._blocks:
            # Copied, because a slice would keep its whole block with all channels in memory.
            chunks.append(samples[max(first - position, 0) : max(last - position, 0)].copy())
            position += len(samples)
            if position >= last:
                break
        return np.concatenate(chunks), position


@contextmanager
def open_audio(data: bytes) -> Iterator[AudioReader]:
    """Open an audio file, or the audio track of a video. Raises: UnreadableMedia."""
    if data[8:16] == b"WAVEfmt ":  # FFmpeg, the fallback for what libsndfile rejects, would take seconds to find out
        limits.AUDIO_CHANNELS.check(int.from_bytes(data[22:24], "little"), "the audio", UnreadableMedia)
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except (soundfile.LibsndfileError, TypeError):
        with open_container(data, wanted="an audio file") as container:
            if not container.streams.audio:
                raise UnreadableMedia(f"the file has no audio; {ADVICE['an audio file']}") from None
            yield AudioReader(track_rate(container), decode_track(container))
        return
    with file:
        rate = _checked(file.samplerate, file.channels)
        yield AudioReader(rate, _blocks(file), file if file.subtype.startswith(_SEEKABLE) and file.seekable() else None)


def track_rate(container: "av.container.InputContainer") -> int:
    """Samples per second of the first audio track. Raises: UnreadableMedia if it cannot be decoded."""
    context = container.streams.audio[0].codec_context
    if context is None:
        raise UnreadableMedia("the audio codec is not supported; re-encode it to AAC, or send a wav or flac file")
    return _checked(context.sample_rate, context.channels)


def _checked(rate: int | None, channels: int) -> int:
    if not rate or rate < LEAST_RATE:
        raise UnreadableMedia(f"the audio has {rate or 'no'} samples per second; expected at least {LEAST_RATE}")
    limits.AUDIO_RATE.check(rate, "the audio", UnreadableMedia)
    limits.AUDIO_CHANNELS.check(channels, "the audio", UnreadableMedia)
    return rate


def _blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    until, taken = deadline(), 0
    try:
        if not file.tell():
            file.seek(0)  # soundfile.read does so first, and Opus decodes differently without it
        while len(block := file.read(BLOCK, dtype="float64", always_2d=True)):
            yield block[:, 0]
            taken += len(block)
            _check_bounds(taken, until)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        if not taken:
            raise UnreadableMedia(f"the audio cannot be decoded: {error}") from error


def decode_track(
    container: "av.container.InputContainer", resampler: av.AudioResampler | None = None
) -> Iterator[np.ndarray]:
    """Yield the samples of the first audio track: float64 of its first channel, or the resampler's output.

    Raises: UnreadableMedia, InvalidRequest.
    """
    until, taken = deadline(), 0
    stream = container.streams.audio[0]
    try:
        for frame in container.decode(stream):
            _checked(frame.sample_rate, len(frame.layout.channels))  # they may change within a track
            for part in resampler.resample(frame) if resampler else (frame,):
                samples = part.to_ndarray()
                yield samples[0] if resampler else _first_channel(samples, part)
            taken += frame.samples
            _check_bounds(taken, until)
        for part in resampler.resample(None) if resampler else ():
            yield part.to_ndarray()[0]
    except DECODER_ERRORS as error:
        if not taken:
            raise UnreadableMedia(f"the audio cannot be decoded: {reason(error)}") from error


def _check_bounds(taken: int, until: float) -> None:
    limits.AUDIO_SAMPLES.check(taken, "the audio", InvalidRequest)
    if time.process_time() > until:
        raise InvalidRequest(f"the audio takes more than {limits.DECODE_SECONDS.value} s to decode; send a shorter one")


def _first_channel(samples: np.ndarray, frame: av.AudioFrame) -> np.ndarray:
    channels = 1 if frame.format.is_planar else len(frame.layout.channels)
    first = samples[0][::channels]
    if first.dtype == np.uint8:
        return (first.astype(np.float64) - 128.0) / 128.0
    if first.dtype.kind == "i":
        return first / -float(np.iinfo(first.dtype).min)
    return first.astype(np.float64)
