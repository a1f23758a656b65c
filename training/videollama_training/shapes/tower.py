"""Pretrains the vision tower, before it is connected to the language model.

The published towers come pretrained (CLIP, SigLIP); this one learns to predict the shape, colour and size that cover each patch.
B images, P patches of each, C the tower's width.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from videollama_core.media.pixels import to_tower_size
from videollama_core.model.config import PixelConfig
from videollama_core.model.vision import VisionEncoder
from videollama_training.shapes.tower_training import TowerTraining
from videollama_training.shapes.world import COLOURS, SCENES, SHAPES, SIDE, SIZES, Scene, draw_scene, render_frame

NOTHING, UNCERTAIN = 0, -100  # labels of a patch: background, and ambiguous
BATCH = 64
_KINDS = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)


def patch_labels(scene: Scene, time: float, grid: int) -> np.ndarray:
    """int64 [P, 3]: shape, colour and size of the object that covers each patch's centre, from 1; NOTHING for the background.

    The edges of objects are UNCERTAIN; so is the size of an object that grows or shrinks.
    """
    centres = (np.arange(grid) + 0.5) * SIDE / grid
    labels = np.zeros((grid, grid, 3), np.int64)
    for actor in scene.actors:
        if not actor.visible(time):
            continue
        (x, y), radius = actor.centre(time), actor.radius(time)
        distance = np.hypot(centres[None, :] - x, centres[:, None] - y)
        labels[distance < radius + SIDE / grid / 2] = UNCERTAIN
        size = UNCERTAIN if actor.action in ("growing", "shrinking") else 1 + list(SIZES).index(actor.size)
        colour = 1 + list(COLOURS).index(actor.colour_at(time))
        labels[distance < max(0.75 * radius, SIDE / grid / 1.4)] = 1 + SHAPES.index(actor.shape), colour, size
    return labels.reshape(-1, 3)


class _Frames(IterableDataset):
    """Endless frames of random scenes with a codec's noise, and the labels of their patches."""

    def __init__(self, pixels: PixelConfig, grid: int, seed: int) -> None:
        self.pixels, self.grid, self.seed = pixels, grid, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        random, noise = Random(f"{self.seed}/tower"), np.random.default_rng(self.seed)
        while True:
            scene, time = draw_scene(random, random.choice(SCENES), held_out=False), random.random()
            frame = to_tower_size([np.asarray(render_frame(scene, time))], self.pixels)[0]
            noisy = frame + noise.normal(0.0, 4.0, frame.shape)  # simulates a codec's losses
            yield noisy.clip(0, 255).astype(np.uint8), patch_labels(scene, time, self.grid)


def pretrain_tower(tower: VisionEncoder, pixels: PixelConfig, steps: int, seed: int) -> float:
    """Train in place. Returns: the accuracy of the shape, 0 to 1, on covered patches in the last tenth of the steps."""
    torch.manual_seed(seed)
    training = TowerTraining(tower, tower.config.width, _KINDS, steps)
    batches = iter(DataLoader(_Frames(pixels, tower.config.grid, seed), BATCH, num_workers=1, prefetch_factor=8))
    right, total = 0, 0
    with tqdm(total=steps, desc="tower", unit=" steps") as bar:
        for step in range(steps):
            frames, labels = next(batches)
            scores, loss = training.step(frames, labels, _loss)
            covered = labels[..., 0] > NOTHING
            step_right = int((scores[0].argmax(-1) == labels[..., 0])[covered].sum())
            step_total = int(covered.sum())
            if step >= 0.9 * steps:
                right, total = right + step_right, total + step_total
            bar.set_postfix(loss=f"{loss:.3f}", shape=f"{step_right / max(step_total, 1):.2f}", refresh=False)
            bar.update()
    return right / max(total, 1)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, P, K] and labels [B, P] over patches, with weight 0.1 for the background."""
    weight = torch.ones(logits.shape[-1])
    weight[NOTHING] = 0.1
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight, ignore_index=UNCERTAIN)
