"""Audio: the reference's filterbanks, its rules for long and short clips, and inputs that cannot be decoded."""

import io
import json
import wave

import av
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from conftest import GOLDEN, MEDIA
from videollama_core.media.audio import (
    RATE,
    SAMPLES,
    file_waveform,
    filterbank,
    load_audio,
    resample,
    to_bfloat16,
    track_waveform,
)
from videollama_core.media.video import Segment
from videollama_core.model.audio import bucket_of
from videollama_core.protocol.errors import BadSegment, UnreadableMedia

STORED = load_file(GOLDEN / "preprocess" / "audio.safetensors")
ENTRIES = json.loads((GOLDEN / "preprocess" / "audio.json").read_text("utf-8"))["entries"]
OPUS = json.loads((GOLDEN / "preprocess" / "opus.json").read_text("utf-8"))["entries"]


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """int16 [N] or [N, channels] -> the bytes of a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["media"])
def test_waveforms_and_filterbanks_equal_the_references(entry):
    path = GOLDEN / entry["media"]
    if not path.exists():
        pytest.fail(f"{path} is missing")
    is_file = entry["kind"] == "audio_file"
    waveform = (file_waveform if is_file else track_waveform)(path.read_bytes())
    assert waveform.shape == (SAMPLES,)
    probes = STORED[f"{path.name}.waveform_every500"].numpy()
    assert np.abs(waveform[::500] * 32768 - probes).max() <= (1e-3 if is_file else 1.0)  # AAC: a step of 32768
    rows = filterbank(waveform)[::16]
    wanted = STORED[f"{path.name}.fbank_rows_every16_bf16"].float().numpy()
    assert rows.shape == wanted.shape and np.mean(rows != wanted) <= 5e-4  # a step of bfloat16, float32 or 64 inside


@pytest.mark.parametrize("entry", OPUS, ids=lambda entry: entry["media"])
def test_opus_is_decoded_at_its_recorded_rate(entry):
    """FFmpeg decodes Opus at 48 kHz: bins that libsndfile leaves silent, above half the rate, held 24 to 50 % of the
    filterbank.
    """
    waveform = file_waveform((MEDIA / entry["media"]).read_bytes())
    assert np.abs(waveform[:RATE:64] - entry["samples_every64"]).max() <= 1e-5  # stored with six digits


def test_formats_unknown_to_libsndfile_go_through_ffmpeg():
    data = (MEDIA / "alac16k_96x64.mp4").read_bytes()
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.SoundFile(io.BytesIO(data))
    assert file_waveform(data).any()


def test_a_phones_recording_in_amr_is_read():
    buffer = io.BytesIO()
    with av.open(buffer, "w", "amr") as output:
        stream = output.add_stream("libopencore_amrnb", rate=8000, layout="mono")
        for _ in range(50):
            tone = (np.sin(np.arange(160) * 0.3) * 9000).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(tone, "s16", "mono")
            frame.sample_rate = 8000
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    waveform = file_waveform(buffer.getvalue())
    assert np.abs(waveform[:RATE]).max() > 0.1 > np.abs(waveform[2 * RATE :]).max()


def test_silence_gives_the_floor_value():
    rows = filterbank(np.zeros(SAMPLES))
    assert rows.shape == (2998, 128) and np.all(rows == np.float32(-15.9375))  # -15.9424 as bfloat16


def test_buckets_of_relative_positions():
    positions, buckets = STORED["relative_bucket.positions"], STORED["relative_bucket.buckets_320_800"]
    assert torch.equal(bucket_of(positions.long()), buckets.long())


def test_an_audio_file_uses_its_first_channel_and_a_video_track_is_mixed():
    left = (np.sin(np.arange(RATE) / 5) * 9000).astype(np.int16)
    both = np.stack([left, np.zeros_like(left)], axis=1)
    assert np.array_equal(file_waveform(wav(both)), file_waveform(wav(left)))
    assert np.abs(track_waveform(wav(both))).max() < 0.8 * np.abs(track_waveform(wav(left))).max()


def test_thirty_seconds_are_read_from_the_given_start():
    ramp = np.arange(40 * RATE) // RATE * 100  # the second, in hundreds
    assert file_waveform(wav(ramp))[-1] * 32768 == 2900
    later = file_waveform(wav(ramp), Segment(8.0, None))
    assert (later[0] * 32768, later[-1] * 32768) == (800, 3700)
    part = file_waveform(wav(ramp), Segment(8.0, 10.0))
    assert part[2 * RATE - 1] * 32768 == 900 and not part[2 * RATE :].any()
    assert np.array_equal(file_waveform(wav(ramp)), file_waveform(wav(ramp)))  # the reference takes a random window


def test_a_start_beyond_the_end_is_refused():
    with pytest.raises(BadSegment, match="holds 1.00 s"):
        file_waveform(wav(np.ones(RATE)), Segment(2.0, None))


def test_eight_excerpts_of_a_track():
    seconds = np.repeat(np.arange(10), RATE) * 100
    heard = track_waveform(wav(seconds)) * 32768
    assert [heard[2 * RATE * k] for k in range(8)] == [0, 100, 200, 300, 400, 500, 600, 700]
    assert not heard[16 * RATE :].any()
    short = track_waveform(wav(np.full(RATE, 500))) * 32768  # shorter than an excerpt: used whole, eight times
    assert np.all(short[: 8 * RATE] == 500) and not short[8 * RATE :].any()


@pytest.mark.parametrize("name", ["vfr_80x60.mp4", "anim5_46x60.gif"])
def test_a_video_without_a_track_is_silent(name):
    assert not track_waveform((MEDIA / name).read_bytes()).any()


@pytest.mark.parametrize(("rate", "number"), [(8000, 16000), (44100, 16000), (22050, 16000), (11025, 16000)])
def test_resampling_keeps_a_tone(rate, number):
    time = np.arange(rate) / rate
    resampled = resample(np.sin(2 * np.pi * 440 * time), number)
    assert np.abs(resampled - np.sin(2 * np.pi * 440 * np.arange(number) / number)).max() < 1e-9


def test_rounding_to_bfloat16_equals_torchs():
    values = np.random.default_rng(0).normal(0, 30, 10_000).astype(np.float32)
    assert np.array_equal(to_bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "empty"),
        (
            b"RIFF\x00\x00\x00\x00WAVEjunk",
            "cannot be|not an audio file that can be opened|no audio|rate|samples per second",
        ),
        (b"no sound at all", "not an audio file that can be opened.*send a wav"),
        ((MEDIA / "vfr_80x60.mp4").read_bytes(), "no audio"),
    ],
)
def test_unreadable_audio_is_refused(data, error):
    with pytest.raises(UnreadableMedia, match=error):
        load_audio("audio", data)
