"""Real sizes: CLIP 336 and SigLIP 384 on real media, every pixel equal to the reference's."""

import hashlib
import json

import numpy as np
import pytest

from conftest import DECODER_DEPENDENT, GOLDEN, MEDIA, decode_all
from videollama_core.checkpoint.variants import CLIP_MEAN, CLIP_STD
from videollama_core.media.pixels import pad_to_square, to_tower_size
from videollama_core.media.video import Segment, load_media
from videollama_core.model.config import PixelConfig

ENTRIES = json.loads((GOLDEN / "preprocess" / "real_sizes.json").read_text("utf-8"))["entries"]
CONFIGS = {
    "clip336": PixelConfig(336, True, CLIP_MEAN, CLIP_STD),
    "siglip384": PixelConfig(384, False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def load(entry):
    path = GOLDEN / entry["media"]
    if path.is_dir():
        kind, files = "folder", [file.read_bytes() for file in sorted(path.iterdir())]
    else:
        kind, files = entry["modal"], [path.read_bytes()]
    arguments = entry.get("args", {})
    return load_media(kind, files, Segment(arguments.get("s"), arguments.get("e")), entry.get("num_frames"))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["key"])
def test_pixels_equal_the_reference(entry):
    if entry["media"].endswith(DECODER_DEPENDENT):
        # Its pixels depend on the scaler's build (golden README); the shape does not.
        assert list(to_tower_size(load(entry).rgb, CONFIGS[entry["processor"]]).shape) == entry["shape"]
        return
    found = to_tower_size(load(entry).rgb, CONFIGS[entry["processor"]], pad=entry["aspect_ratio"] == "pad")
    assert list(found.shape) == entry["shape"]
    assert [hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest() for frame in found] == entry["sha256"]


def test_padding_centres_on_the_mean_colour():
    picture = np.full((10, 4, 3), 200, np.uint8)
    square = pad_to_square(picture, (122, 116, 104))
    assert square.shape == (10, 10, 3)
    assert (
        (square[:, 3:7] == 200).all()
        and (square[:, :3] == (122, 116, 104)).all()
        and (square[:, 7:] == (122, 116, 104)).all()
    )
    assert CONFIGS["clip336"].mean_colour == (122, 116, 104) and CONFIGS["siglip384"].mean_colour == (127, 127, 127)


def test_a_repeated_picture_is_resized_once(monkeypatch):
    from videollama_core.media import pixels

    calls = []
    original = pixels._resize
    monkeypatch.setattr(pixels, "_resize", lambda *arguments: calls.append(1) or original(*arguments))
    frame = decode_all(MEDIA / "plain_96x64.mp4")[0]
    assert to_tower_size([frame] * 8, CONFIGS["clip336"]).shape == (8, 336, 336, 3)
    assert len(calls) == 1
