"""Media that demand too much: refused from the header where it shows, and always soon and within a gigabyte."""

import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from security.measured import measured
from security.media_cases import OVER, Case, encoded, flac, npy, wav
from videollama_core.checkpoint.read_config import published_config
from videollama_core.media.audio_file import open_audio
from videollama_core.media.pictures import open_array, open_image
from videollama_core.media.pixels import pad_to_square
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.errors import UnreadableMedia

AREA = "media"
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
SECONDS, MEGABYTES = 5.0, 1024.0


def answer(case: Case, config: ModelConfig) -> tuple:
    prepared = prepare(case.kind, case.files, Segment(case.start, case.end), config)
    return prepared.frames.shape, prepared.filterbank.shape


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    """Real sizes, with the tower that crops, which needs the most for a long picture."""
    audio_visual = published_config("VideoLLaMA2.1-7B-AV")
    return replace(audio_visual, pixels=published_config("VideoLLaMA2-7B").pixels)


@pytest.mark.parametrize("name", OVER)
def test_media_that_demand_too_much_are_refused(name, config, case_table):
    case = Case.made(name, OVER)
    result = measured(lambda: answer(case, config))
    case_table.add(f"{case.name} ({case.kind})", result.answer, result.seconds, result.megabytes)
    assert result.typed and result.answer != "answered", result
    assert result.seconds < SECONDS and result.megabytes < MEGABYTES, result


HONEST = {
    "picture of 1x100": ("image", lambda: encoded((1, 100), "PNG"), None),
    "picture of 8192x4320": ("image", lambda: encoded((8192, 4320), "PNG", "L"), None),
    "progressive jpeg of 4000x3000": ("image", lambda: encoded((4000, 3000), "JPEG", progressive=True), None),
    "32 of 20,000,000 raw pictures of 1x1": ("frames", lambda: npy("(20000000, 1, 1, 3)", 60_000_000), None),
    "last second of a wav of an hour": ("audio", lambda: wav(16000, 1, 3600), 3599.0),
    "last second of a flac of 24 hours": ("audio", lambda: flac(24, 1000), 86399.0),
}


@pytest.mark.parametrize("name", HONEST)
def test_large_honest_media_are_answered_within_the_limits(name, config, case_table):
    case = Case.made(name, HONEST)
    result = measured(lambda: answer(case, config))
    case_table.add(f"{name} ({case.kind})", result.answer, result.seconds, result.megabytes)
    assert result.answer == "answered", result
    assert result.seconds < SECONDS and result.megabytes < 400, result


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF"])
def test_the_documented_formats_are_opened(format):
    data = encoded((40, 30), format)
    assert open_image(data).shape == (30, 40, 3)


@pytest.mark.parametrize("format", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "EPS"])
def test_other_formats_are_refused(format):
    with pytest.raises(UnreadableMedia, match="not a picture that can be opened.*send a png, jpeg"):
        open_image(encoded((40, 30), format))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("start", [0.0, 3.21, 61.7])
def test_seeking_to_a_late_start_gives_the_same_samples_as_decoding_from_0(subtype, start):
    noise = np.random.default_rng(1).uniform(-0.9, 0.9, (64 * 8000, 2))
    for container in ("WAV", "FLAC") if subtype.startswith("PCM") else ("WAV",):
        buffer = io.BytesIO()
        soundfile.write(buffer, noise, 8000, subtype, format=container)
        with open_audio(buffer.getvalue()) as audio:
            samples, _ = audio.read(int(start * 8000), int(start * 8000) + 16000)
        whole = soundfile.read(io.BytesIO(buffer.getvalue()))[0][:, 0]
        assert np.array_equal(samples, whole[int(start * 8000) :][:16000])


def test_raw_frames_in_either_memory_order_are_read():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    for array in (pictures, np.asfortranarray(pictures)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        assert np.array_equal(open_array(buffer.getvalue()), pictures)


def test_a_picture_padded_to_a_square_is_limited_by_its_padded_size():
    narrow = np.zeros((400, 20000, 3), np.uint8)
    with pytest.raises(UnreadableMedia, match="padded to a square has 400000000 pixels"):
        pad_to_square(narrow, (0, 0, 0))
