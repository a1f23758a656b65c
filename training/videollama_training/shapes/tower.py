"""Pretraining of the vision tower alone, before it is joined to the language model.

The published towers come pretrained (CLIP, SigLIP); this one learns to say of every patch which shape, colour and size covers
it. B pictures, P patches of each, C the tower's width.
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

NOTHING, UNCERTAIN = 0, -100  # labels of a patch: the ground, and what cannot be told
BATCH = 64
_KINDS = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)


def patch_labels(scene: Scene, time: float, grid: int) -> np.ndarray:
    """int64 [P, 3]: shape, colour and size of what covers each patch's centre, counted from 1; NOTHING where it is the ground.

    The edges of things, where both could be said, are UNCERTAIN; so is the size of what grows or shrinks.
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
    """Endless frames of random scenes, as a decoder might give them, with the labels of their patches."""

    def __init__(self, pixels: PixelConfig, grid: int, seed: int) -> None:
        self.pixels, self.grid, self.seed = pixels, grid, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        random, noise = Random(f"{self.seed}/tower"), np.random.default_rng(self.seed)
        while True:
            scene, time = draw_scene(random, random.choice(SCENES), held_out=False), random.random()
            frame = to_tower_size([np.asarray(render_frame(scene, time))], self.pixels)[0]
            blurred = frame + noise.normal(0.0, 4.0, frame.shape)  # a codec's losses
            yield blurred.clip(0, 255).astype(np.uint8), patch_labels(scene, time, self.grid)


def pretrain_tower(tower: VisionEncoder, pixels: PixelConfig, steps: int, seed: int) -> float:
    """Train in place. Returns how many of the covered patches of the last tenth got the right shape (share)."""
    torch.manual_seed(seed)
    training = TowerTraining(tower, tower.config.width, _KINDS, steps)
    batches = iter(DataLoader(_Frames(pixels, tower.config.grid, seed), BATCH, num_workers=1, prefetch_factor=8))
    right, seen = 0, 0
    with tqdm(total=steps, desc="tower", unit=" steps") as bar:
        for step in range(steps):
            frames, labels = next(batches)
            scores, loss = training.step(frames, labels, _loss)
            covered = labels[..., 0] > NOTHING
            now, of = int((scores[0].argmax(-1) == labels[..., 0])[covered].sum()), int(covered.sum())
            if step >= 0.9 * steps:
                right, seen = right + now, seen + of
            bar.set_postfix(loss=f"{loss:.3f}", shape=f"{now / max(of, 1):.2f}", refresh=False)
            bar.update()
    return right / max(seen, 1)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, P, K], [B, P] -> the mean over patches, those of the ground counted a tenth."""
    weight = torch.ones(logits.shape[-1])
    weight[NOTHING] = 0.1
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight, ignore_index=UNCERTAIN)
