"""The media hash by which the language model may reuse its KV cache: equal for equal media, and for nothing else."""

import numpy as np
import pytest

from conftest import checkpoint
from videollama_core.contrast import Noise
from videollama_core.engines import media_encoder
from videollama_core.engines.media_encoder import media_digest, media_hash
from videollama_core.prompt import tokenize_prompt
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.text import Tokenizer

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
SOUND = np.zeros((3, 128), np.float32)


def test_equal_media_have_equal_hashes():
    digest = media_digest(FRAMES, SOUND)
    assert digest == media_digest(FRAMES.copy(), SOUND.copy()) and len(digest) == 32
    assert media_hash(digest) == int.from_bytes(digest[:8], "little")
    assert media_hash(bytes(32)) == 1  # 0 stands for text


def test_the_hash_cannot_be_computed_outside_the_process(monkeypatch):
    known = media_digest(FRAMES, SOUND)
    monkeypatch.setattr(media_encoder, "_SECRET", bytes(32))
    assert media_digest(FRAMES, SOUND) != known and len(known) == 32


@pytest.mark.parametrize(
    "other",
    [
        (FRAMES[::-1], SOUND),
        (FRAMES[:3], SOUND),
        (FRAMES.reshape(8, 4, 8, 3), SOUND),
        (FRAMES, SOUND + 1),
        (FRAMES ^ 1, SOUND),
        (FRAMES, None),
        (FRAMES, SOUND.reshape(128, 3)),
        (FRAMES, SOUND, Noise(0, 0)),
    ],
)
def test_different_media_have_different_hashes(other):
    assert media_digest(*other) != media_digest(FRAMES, SOUND)


def test_only_media_positions_carry_the_hash():
    tokenizer = Tokenizer(checkpoint("qwen2-clip-8f"))
    prompt = tokenize_prompt(tokenizer, "before <video> after", "video", 45, 1024)
    extra_ids = prompt.extra_ids(2**64 - 1)
    assert extra_ids.dtype == np.uint64 and extra_ids.shape == prompt.input_ids.shape
    assert np.array_equal(extra_ids != 0, prompt.input_ids >= 1024) and set(extra_ids[extra_ids != 0].tolist()) == {
        2**64 - 1
    }
    with pytest.raises(InvalidRequest, match="media_hash is missing"):
        prompt.extra_ids(None)
    text = tokenize_prompt(tokenizer, "text alone", "text", 0, 1024)
    assert not text.extra_ids(None).any()
