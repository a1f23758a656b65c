"""Media tokens are the same bits whoever else is encoded meanwhile, on every engine that runs on a CPU."""

from functools import cache
from random import Random

import numpy as np
import pytest

from conftest import VARIANTS, torch_bundle
from videollama_core.contrast import Noise
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_encoder import MediaEncoder, to_host

ENGINES = ("onnx", "torch")


@cache
def encoder(folder) -> MediaEncoder:
    return MediaEncoder(Bundle.open(folder))


def media(config, random: Random) -> dict:
    """A picture or a video with some frames that repeat, maybe noised, maybe with sound."""
    values = np.random.default_rng(random.getrandbits(32))
    size = config.pixels.size
    distinct = values.integers(0, 256, (random.choice([1, 3, config.num_frames]), size, size, 3), np.uint8)
    count = 1 if random.random() < 0.3 else config.num_frames + random.choice([0, 1, 4])
    arguments = {"frames": distinct[[n % len(distinct) for n in range(count)]]}
    if random.random() < 0.3:
        arguments["noise"] = Noise(500, random.getrandbits(16))
    if config.audio and random.random() < 0.5:
        arguments["filterbank"] = values.normal(size=(config.audio.rows, config.audio.bins)).astype(np.float32)
    return arguments


@pytest.mark.parametrize("shares_runs", [False, True], ids=["own runs", "shared runs"])  # as on a CPU, as on a GPU
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_who_else_is_encoded_changes_no_bit(variant, engine, shares_runs, bundle_of, monkeypatch):
    encoders = encoder(torch_bundle(variant) if engine == "torch" else bundle_of(variant))
    monkeypatch.setattr(encoders._encoders, "shares_runs", shares_runs)
    random = Random(variant + engine)
    asked = [media(encoders._config, random) for _ in range(8)]
    alone = [encoders.encode(**each) for each in asked]
    for _ in range(3):
        together = [encoders.begin(**each) for each in asked]
        waiting = list(together)
        while waiting:
            random.shuffle(waiting)
            encoders.run(waiting[0], waiting[1:])
            waiting = [encoding for encoding in waiting if not encoding.is_done]
        for encoding, wanted in zip(together, alone, strict=True):
            assert np.array_equal(to_host(encoding.table), wanted)
