"""Visual contrastive decoding (VCD, arXiv 2311.16922): a second sequence on noised pixels shows what language alone predicts.

The noise and the scores are those of the paper's code (DAMO-NLP-SG/VCD, vcd_utils). S: image side.
"""

from dataclasses import dataclass

import numpy as np

from videollama_core.model.config import PixelConfig
from videollama_core.protocol.errors import BadSampling

NOISE_STEPS = 1000
NO_CONTRAST = (
    "vcd_alpha needs an engine that scores two sequences together (onnx, torch); TensorRT and vLLM do not: omit it"
)
NO_PIXELS = (
    "vcd_alpha contrasts with noised pixels, and this request has no pixels: ask about a video or an image, or omit it"
)
_STREAM = 1  # random stream, distinct from the sampler's for the same seed


@dataclass(frozen=True)
class Noise:
    """Noise in the pixels of the second sequence. Raises: BadSampling for a step out of range."""

    step: int  # of the diffusion, 0 to 999
    seed: int = 0  # same seed, same noise

    def __post_init__(self) -> None:
        if not 0 <= self.step < NOISE_STEPS:
            raise BadSampling(f"vcd_noise_step is {self.step}; it takes 0 to {NOISE_STEPS - 1}")


def kept_variance(step: int) -> float:
    """The share of a pixel's variance that is left after `step` + 1 diffusion steps; the rest is noise."""
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, NOISE_STEPS))) * (0.5e-2 - 1e-5) + 1e-5
    return float(np.cumprod(1 - betas)[step])


def add_noise(frames: np.ndarray, noise: Noise, pixels: PixelConfig) -> np.ndarray:
    """Add noise to frames before they are normalized, so that they equal the paper's noised pixels afterwards.

    The paper adds noise to normalized pixels. Normalization is linear per channel, so its inverse gives equivalent colours,
    which are neither integers nor within 0 to 255.

    Args: frames uint8 [T, S, S, 3]; each frame gets its own noise.
    Returns: float32 [T, S, S, 3].
    """
    kept = kept_variance(noise.step)
    drawn = np.random.default_rng((noise.seed, _STREAM)).standard_normal(frames.shape, np.float32)
    mean, std = np.array(pixels.mean) / pixels.scale, np.array(pixels.std) / pixels.scale  # as colours
    return (kept**0.5 * (frames - mean) + mean + (1 - kept) ** 0.5 * std * drawn).astype(np.float32)


def contrast(scores: np.ndarray, noised: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Contrasted scores of the next token, float32 [vocab], over the plausible tokens.

    A token below log(beta) + the best plain score is implausible and gets -inf, whatever its contrast; beta 0 keeps all.

    Args: scores, noised: of the two sequences, float32 [vocab].
    """
    weight = np.float32(alpha)
    with np.errstate(divide="ignore"):
        cutoff = np.log(np.float32(beta)) + scores.max()
    return np.where(scores < cutoff, np.float32(-np.inf), (1 + weight) * scores - weight * noised)
