"""Encoded audio -> Kaldi filterbanks, the input of BEATs.

An audio file keeps its first channel and is resampled after padding; a video's audio track is mixed down to mono, and eight
excerpts of two seconds are used. Both are as in the reference.
"""

from functools import lru_cache
from typing import Any

import av
import numpy as np

from videollama_core.media.audio_file import decode_track, open_audio, track_rate
from videollama_core.media.decoding.container import open_container
from videollama_core.media.video import Segment
from videollama_core.protocol import limits
from videollama_core.protocol.errors import BadSegment, InvalidRequest, UnreadableMedia

RATE = 16000  # samples per second, as the audio tower takes them
SECONDS = 30  # of silence-padded audio per request
SAMPLES = RATE * SECONDS
EXCERPTS, EXCERPT_SECONDS = 8, 2.0  # of a video's track
BINS = 128  # mel bands
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms
ROWS = 1 + (SAMPLES - WINDOW) // HOP  # 2998, complete windows only
PREEMPHASIS = 0.97
LOWEST, HIGHEST = 20.0, 8000.0  # Hz
FLOOR = 1.1920929e-7  # float32's epsilon: the least power, so that silence has a logarithm


def load_audio(kind: str, data: bytes, segment: Segment = Segment()) -> np.ndarray:
    """The filterbank, float32 [ROWS, BINS], of an audio file ("audio") or a video's audio track ("video_with_audio").

    Of an audio file, 30 s from `segment.start` on are used (the reference takes a random window). The segment of a video
    applies to its frames and not to its audio, as in the reference.
    Raises: UnreadableMedia, BadSegment, InvalidRequest.
    """
    if not data:
        raise UnreadableMedia("the file is empty (0 bytes)")
    return filterbank(file_waveform(data, segment) if kind == "audio" else track_waveform(data))


# --- waveforms: float64 [SAMPLES] ----------------------------------------------------------------------------------------


def file_waveform(data: bytes, segment: Segment = Segment()) -> np.ndarray:
    """First channel, padded with zeros to 30 s at the file's own rate, then resampled. Values in [-1, 1]."""
    with open_audio(data) as audio:
        rate = audio.rate
        first = int((segment.start or 0.0) * rate)
        last = first + SECONDS * rate
        if segment.end is not None:
            last = min(last, int(segment.end * rate))
        samples, position = audio.read(first, last)
    if not len(samples):
        raise BadSegment(
            f"there is no audio between {segment.start or 0:g} s and {last / rate:g} s: the file holds {position / rate:.2f} s"
        )
    return resample(np.pad(samples, (0, SECONDS * rate - len(samples))), SAMPLES)


def track_waveform(data: bytes) -> np.ndarray:
    """Eight excerpts of two seconds, concatenated; the last one never reaches the end. Silence without an audio track."""
    if data[:4] == b"GIF8":  # which no decoder of sound opens
        return np.zeros(SAMPLES)
    with open_container(data) as container:
        if not container.streams.audio:
            return np.zeros(SAMPLES)
        track = bytearray()  # int16; grows in place
        try:
            track_rate(container)
            for part in decode_track(container, av.AudioResampler(format="s16", layout="mono", rate=RATE)):
                track += part.tobytes()
                limits.TRACK_SECONDS.check(len(track) / 2 / RATE, "the video's audio track", InvalidRequest)
        except UnreadableMedia:
            return np.zeros(SAMPLES)  # an audio track that cannot be decoded is silence, as in the reference
    samples = np.frombuffer(track, np.int16)
    seconds = len(samples) / RATE
    starts = [number * max(seconds - EXCERPT_SECONDS, 0.0) / EXCERPTS for number in range(EXCERPTS)]
    excerpts = [samples[int(start * RATE) : int((start + EXCERPT_SECONDS) * RATE)] for start in starts]
    waveform = np.concatenate(excerpts)[:SAMPLES] / 32768.0
    return np.pad(waveform, (0, SAMPLES - len(waveform)))


def resample(samples: np.ndarray, number: int) -> np.ndarray:
    """Band-limited resampling of one period in the frequency domain: float64 [N] -> [number]."""
    if len(samples) == number:
        return samples
    spectrum = np.fft.rfft(samples)
    shorter = min(len(samples), number)
    kept = np.zeros(number // 2 + 1, spectrum.dtype)
    kept[: shorter // 2 + 1] = spectrum[: shorter // 2 + 1]
    if shorter % 2 == 0:  # the Nyquist bin of the shorter signal corresponds to two bins of the longer one
        kept[shorter // 2] *= 2.0 if number < len(samples) else 0.5
    return np.fft.irfft(kept, number) * (number / len(samples))


# --- filterbanks ---------------------------------------------------------------------------------------------------------


def filterbank(waveform: np.ndarray) -> np.ndarray:
    """[SAMPLES] in [-1, 1] -> float32 [ROWS, BINS], rounded to bfloat16, like the inputs of the published model."""
    samples = waveform.astype(np.float64) * 32768.0
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    turn = 2.0 * np.pi * np.arange(WINDOW) / (WINDOW - 1)
    frames = (frames - PREEMPHASIS * before) * (0.5 - 0.5 * np.cos(turn)) ** 0.85  # Kaldi's "povey" window
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2
    return to_bfloat16(np.log(np.maximum(power[:, : FFT // 2] @ _triangles(), FLOOR)))


@lru_cache
def _triangles() -> np.ndarray:
    """The mel weights, float64 [FFT / 2, BINS]: share of each frequency in each band; the Nyquist frequency is unused."""
    low, high = _mel(np.float64(LOWEST)), _mel(np.float64(HIGHEST))
    step = (high - low) / (BINS + 1)
    left = low + np.arange(BINS) * step
    frequency = _mel(np.arange(FFT // 2) * RATE / FFT)[:, None]
    return np.maximum(0.0, np.minimum((frequency - left) / step, (left + 2 * step - frequency) / step))


def _mel(hertz: Any) -> Any:
    return 1127.0 * np.log(1.0 + hertz / 700.0)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round each finite value to the nearest bfloat16, ties to even; returns float32."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)
