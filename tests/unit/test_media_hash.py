"""The hash by which the language model may reuse keys and values: same media, same hash; and nothing else."""

import numpy as np
import pytest

from conftest import checkpoint
from videollama_core.engines.media_encoder import MediaTokenCache, media_hash
from videollama_core.prompt import tokenize_prompt
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.text import Tokenizer

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
SOUND = np.zeros((3, 128), np.float32)


def test_equal_media_have_equal_hashes():
    assert media_hash(FRAMES, SOUND) == media_hash(FRAMES.copy(), SOUND.copy())
    assert 0 < media_hash(FRAMES, None) < 2**64


@pytest.mark.parametrize(
    "other",
    [
        (FRAMES[::-1], SOUND),
        (FRAMES[:3], SOUND),
        (FRAMES.reshape(8, 4, 8, 3), SOUND),
        (FRAMES, SOUND + 1),
        (FRAMES ^ 1, SOUND),
        (FRAMES, None),
    ],
)
def test_other_media_have_others(other):
    assert media_hash(*other) != media_hash(FRAMES, SOUND)


def test_every_media_position_carries_it_and_no_other():
    tokenizer = Tokenizer(checkpoint("qwen2-clip-8f"))
    prompt = tokenize_prompt(tokenizer, "before <video> after", "video", 45, 1024)
    found = prompt.extra_ids(2**64 - 1)
    assert found.dtype == np.uint64 and found.shape == prompt.input_ids.shape
    assert np.array_equal(found != 0, prompt.input_ids >= 1024) and set(found[found != 0].tolist()) == {2**64 - 1}
    with pytest.raises(InvalidRequest, match="media_hash is missing"):
        prompt.extra_ids(None)
    text = tokenize_prompt(tokenizer, "text alone", "text", 0, 1024)
    assert not text.extra_ids(None).any()


def test_the_newest_tables_are_kept_and_no_more():
    made = []

    def table(key):
        made.append(key)
        return np.full((1, 4), key, np.float32)  # 16 bytes

    kept = MediaTokenCache(most_bytes=48)
    for key in (1, 2, 3, 1, 4, 2, 1):
        assert kept.get(key, lambda key=key: table(key))[0, 0] == key
    assert made == [1, 2, 3, 4, 2]  # 4 put 2 out, which 1 had been asked after; 2 then put 3 out
    large = MediaTokenCache(most_bytes=8)
    assert [large.get(5, lambda: table(5))[0, 0] for _ in range(2)] == [5, 5] and made[-2:] == [5, 5]
