"""Noise and contrast against the output of the paper's own code (tests/golden/contrast/vcd.json)."""

import json

import numpy as np
import pytest
import torch

from conftest import GOLDEN
from videollama_core import contrast as contrasting
from videollama_core.contrast import Noise, add_noise, contrast, kept_variance
from videollama_core.model.config import PixelConfig, VisionConfig
from videollama_core.model.vision import VisionEncoder
from videollama_core.protocol.errors import BadSampling
from videollama_core.protocol.messages import GenerationDefaults, SamplingOptions
from videollama_core.sampling import Sampler, probabilities

RECORDED = json.loads((GOLDEN / "contrast" / "vcd.json").read_text("utf-8"))
PIXELS = PixelConfig(8, False, (0.481, 0.457, 0.408), (0.268, 0.261, 0.275))
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def normalised(frames: np.ndarray) -> np.ndarray:
    """Normalised as the towers do it: float32 [T, 3, S, S]."""
    tower = VisionEncoder(VisionConfig("siglip", 8, 8, 1, 1, 8, 8, "gelu", 1e-6, -1), PIXELS)
    return tower.normalise(torch.from_numpy(frames)).numpy()


@pytest.mark.parametrize("step", RECORDED["noise"]["noised"])
def test_the_noise_schedule_is_the_papers(step):
    plain, noise = (np.array(RECORDED["noise"][name]) for name in ("x", "noise"))
    kept = kept_variance(int(step))
    wanted = RECORDED["noise"]["noised"][step]
    assert np.allclose(kept**0.5 * plain + (1 - kept) ** 0.5 * noise, wanted, atol=2e-6)


@pytest.mark.parametrize("step", [0, 500, 999])
def test_noised_uint8_pixels_equal_noised_normalised_pixels(step):
    noised = add_noise(FRAMES, Noise(step, 7), PIXELS)
    assert noised.dtype == np.float32 and noised.shape == FRAMES.shape
    drawn = np.random.default_rng((7, contrasting._STREAM)).standard_normal(FRAMES.shape, np.float32)
    kept = kept_variance(step)
    wanted = kept**0.5 * normalised(FRAMES) + (1 - kept) ** 0.5 * drawn.transpose(0, 3, 1, 2)
    assert np.abs(normalised(noised) - wanted).max() < 2e-6


def test_noise_depends_on_the_seed_and_differs_per_frame():
    same = np.zeros((2, 8, 8, 3), np.uint8)
    noised = add_noise(same, Noise(500, 7), PIXELS)
    assert np.array_equal(noised, add_noise(same, Noise(500, 7), PIXELS))
    assert not np.array_equal(noised, add_noise(same, Noise(500, 8), PIXELS))
    assert not np.array_equal(noised[0], noised[1])
    for step in (-1, 1000):
        with pytest.raises(BadSampling, match="vcd_noise_step"):
            Noise(step)


@pytest.mark.parametrize("row", RECORDED["contrast"], ids=lambda row: f"{row['alpha']}-{row['beta']}")
def test_the_contrast_is_the_papers(row):
    scores, noised = (np.array(row[name], np.float32) for name in ("scores", "noised"))
    contrasted = contrast(scores, noised, row["alpha"], row["beta"])
    wanted = np.array([-np.inf if value is None else value for value in row["contrast"]], np.float32)
    assert contrasted.dtype == np.float32 and np.array_equal(np.isinf(contrasted), np.isinf(wanted))
    assert np.allclose(contrasted, wanted, rtol=1e-5, atol=1e-5)
    for temperature, chances in row["chances"].items():
        options = SamplingOptions(temperature=float(temperature), top_k=0, top_p=1.0)
        sampling = GenerationDefaults((2,)).resolve(options)
        assert np.allclose(probabilities(contrasted, sampling), chances, atol=2e-6)


def test_implausible_tokens_stay_excluded_after_the_penalty_and_top_k():
    scores = contrast(np.array([5.0, 1.0, 4.0], np.float32), np.zeros(3, np.float32), 1.0, 0.1)
    assert scores.tolist() == [10.0, -np.inf, 8.0]
    options = SamplingOptions(temperature=1.0, top_k=3, repetition_penalty=1.5, seed=0)
    sampler = Sampler(GenerationDefaults((2,)).resolve(options))
    sampler.take(1)
    assert {sampler.choose(scores) for _ in range(50)} <= {0, 2}
