"""Adds a pretrained audio tower to a tiny checkpoint, with a projector of random weights.

The published tower comes pretrained (BEATs, on AudioSet's tags); this one learns to predict at every patch what sounds there, the
kind of the whole sound, and its number of beeps. B sounds, P patches of each.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from videollama_core.checkpoint.files import read_json
from videollama_core.checkpoint.read_config import read_model_config
from videollama_core.media.audio import EXCERPTS, HOP, RATE, SAMPLES, WINDOW, filterbank
from videollama_core.model import audio
from videollama_core.model.audio import AudioEncoder, AudioTower
from videollama_core.model.config import AudioConfig
from videollama_training.save import published_names
from videollama_training.shapes.sounds import (
    BEEP_SECONDS,
    CLIP_SECONDS,
    GLIDES,
    PITCHES,
    SOUND_SECONDS,
    Sound,
    draw_mixed_beeps,
    draw_sound,
    draw_sounding_scene,
    render_sound,
)
from videollama_training.shapes.tower_training import TowerTraining

AUDIO_TOWER = AudioConfig(width=96, mlp_width=256, layers=2, heads=4, patch_width=64)
MAX_POSITIONS = 2048  # audio takes 1,496 of them
UNCERTAIN = -100
NOW = ("nothing", *PITCHES)  # what sounds at a moment
KINDS = ("beeps", "steady", *GLIDES, "silence")
MOST_BEEPS = 5
SHORT_ROWS = 512  # filterbank rows of the first steps: 5 s, a thirtieth of the work
_HEADS = (len(NOW), len(KINDS), MOST_BEEPS + 1)


def add_audio_tower(checkpoint: Path, folder: Path, seed: int, steps: int) -> None:
    """Write `checkpoint` with an audio tower pretrained for `steps` steps to `folder`, in the published audio-visual layout."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.md", "*.png", "results.json"))
    config = read_json(folder / "config.json")
    config["max_position_embeddings"] = MAX_POSITIONS
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", "utf-8")
    torch.manual_seed(seed)
    module = AudioEncoder(AUDIO_TOWER, read_model_config(folder).language.width)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 if "bias" not in name else 0.02)
    if steps:
        pretrain_audio_tower(module.tower, steps, seed)
    tensors = published_names({f"audio.{name}": tensor for name, tensor in module.state_dict().items()})
    own = (f"{audio.PREFIX}encoder.pos_conv.0.weight", f"{audio.PREFIX}encoder.relative_attention_bias.weight")
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous().clone() for name, tensor in tensors.items() if name not in own
    }
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})


class _Sounds(IterableDataset):
    """Endless sounds and audio tracks, with labels of their patches."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        random, noise = Random(f"{self.seed}/ears"), np.random.default_rng(self.seed)
        samples = WINDOW + (self.rows - 1) * HOP
        while True:
            sound, seconds, repeats = _draw(random)
            audible = np.tile(render_sound(sound, seconds), repeats)
            waveform = np.pad(audible, (0, SAMPLES))[:samples]
            if random.random() < 0.5:  # simulates a codec's noise
                waveform[: len(audible)] += noise.normal(
                    0.0, 10.0 ** random.uniform(-5, -3), len(waveform[: len(audible)])
                )
            yield filterbank(waveform), moment_labels(sound, seconds, repeats, self.rows // audio.PATCH)


def _draw(random: Random) -> tuple[Sound, float, int]:
    """A sound, its seconds, and its number of repetitions: all excerpts of a short video's audio track are the same."""
    kind = random.randrange(3)
    if kind < 2:
        sound = draw_mixed_beeps(random) if kind else draw_sound(random, held_out=False)
        return sound, SOUND_SECONDS, 1
    beeps = tuple(moment for group in draw_sounding_scene(random, held_out=False).beeps for moment in group)
    return Sound("beeps", "high", beeps), CLIP_SECONDS, EXCERPTS


def moment_labels(sound: Sound, seconds: float, repeats: int, moments: int) -> np.ndarray:
    """int64 [moments, 3]: index in NOW of what sounds, index in KINDS of the whole sound's kind, and its number of beeps."""
    length = audio.PATCH * HOP / RATE
    kind = {"tone": "steady", "glide": sound.glide}.get(sound.kind, sound.kind)
    labels = np.tile(np.array([0, KINDS.index(kind), len(sound.beeps)]), (moments, 1))
    for moment in range(moments):
        start, end = moment * length, (moment + 1) * length + WINDOW / RATE
        if start >= seconds * repeats or sound.kind == "silence":
            continue
        if sound.kind == "beeps":
            audible = dict.fromkeys(PITCHES, 0.0)
            for turn in range(repeats):
                for beep, pitch in sound.timed_beeps():
                    begin = beep + turn * seconds
                    audible[pitch] += max(min(end, begin + BEEP_SECONDS) - max(start, begin), 0.0)
            pitch = max(audible, key=lambda pitch: audible[pitch])
            labels[moment, 0] = (
                NOW.index(pitch) if audible[pitch] > BEEP_SECONDS / 2 else UNCERTAIN if any(audible.values()) else 0
            )
        else:
            labels[moment, 0] = NOW.index(sound.pitch) if sound.pitch else UNCERTAIN
    return labels


def pretrain_audio_tower(tower: AudioTower, steps: int, seed: int) -> dict[str, float]:
    """Train in place, mostly on inputs of 5 s, and in the last twentieth of the steps on 30 s. Returns: accuracies, 0 to 1."""
    torch.manual_seed(seed)
    training = TowerTraining(tower, AUDIO_TOWER.width, _HEADS, steps)
    last = max(steps // 20, 1)
    rounds = ((SHORT_ROWS, 32, steps - last), (AUDIO_TOWER.rows, 4, last))
    right = torch.zeros(3)
    with tqdm(total=steps, desc="audio tower", unit=" steps") as bar:
        for rows, batch, number in rounds:
            batches = iter(DataLoader(_Sounds(rows, seed + rows), batch, num_workers=1, prefetch_factor=8))
            right.zero_()
            for _ in range(number):
                sounds, labels = next(batches)
                per_patch = labels.repeat_interleave(AUDIO_TOWER.bins // audio.PATCH, dim=1)  # over the bands
                scores, loss = training.step(sounds, per_patch, _loss)
                now = torch.stack([_share(scores[k], per_patch[..., k]) for k in range(3)])
                right += now / number
                bar.set_postfix(loss=f"{loss:.3f}", beeps=f"{now[2]:.2f}", refresh=False)
                bar.update()
    return dict(zip(("now", "kind", "beeps"), right.tolist(), strict=True))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNCERTAIN)


def _share(logits: Tensor, labels: Tensor) -> Tensor:
    known = labels != UNCERTAIN
    return (logits.argmax(-1) == labels)[known].float().mean()
