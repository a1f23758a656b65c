"""Measures the effect of visual contrastive decoding on tiny-shapes, with yes/no questions about the held-out clips.

The clips are clear, or so grainy that the model must guess. Prints the table of docs/evaluation.md; uses a running server:

    vl2 convert training/checkpoints/tiny-shapes --out build/tiny-shapes && vl2 serve build/tiny-shapes
    .venv/bin/python benchmarks/measure_contrast.py localhost:8001
"""

import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from videollama_benchmarks.tasks.hallucination import (
    load_shapes_probing,
    perception_and_resistance,
    read_shapes_probing,
)
from videollama_benchmarks.tasks.items import Item
from videollama_client import Client
from videollama_core.media.video import Segment, load_media

HELD_OUT, NUM_FRAMES = Path(__file__).parent / "shapes", 8
GRAINS = (0, 80, 120)  # standard deviation of the noise, in levels of 255
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"vcd_alpha": 1.0, "vcd_noise_step": 500},
    {"vcd_alpha": 1.0, "vcd_noise_step": 900},
)


@cache
def grainy(media: Path, kind: str, grain: int) -> np.ndarray:
    """The model's frames, uint8 [T, H, W, 3], each with different noise."""
    frames = np.stack(load_media(kind, [media.read_bytes()], Segment(None, None), NUM_FRAMES).rgb)
    noise = np.random.default_rng(zlib.crc32(media.name.encode())).normal(0, grain, frames.shape)
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def measure(client: Client, items: list[Item], grain: int, options: dict[str, Any]) -> dict[str, float]:
    def ask(item: Item) -> str:
        frames = grainy(item.media, item.kind, grain)
        media = {"image": frames[0]} if item.kind == "image" else {"video": frames}
        return client.ask(item.questions[0], max_new_tokens=32, **media, **options).text

    with ThreadPoolExecutor(8) as pool:
        results = [
            (item, read_shapes_probing(item, [answer]))
            for item, answer in zip(items, pool.map(ask, items), strict=True)
        ]
    right = 100 * sum(bool(verdict.right) for _, verdict in results) / len(results)
    return {"accuracy": right, **perception_and_resistance(results)}


def main(address: str) -> None:
    items = load_shapes_probing(HELD_OUT)
    print(f"{len(items)} questions, half of them about absent things")
    print("| grain | contrast | right | perception accuracy | hallucination resistance |\n|---|---|---|---|---|")
    with Client(address) as client:
        for grain in GRAINS:
            for options in SETTINGS:
                setting = "alpha {vcd_alpha:g}, step {vcd_noise_step}".format(**options) if options else "none"
                numbers = " | ".join(f"{value:.1f} %" for value in measure(client, items, grain, options).values())
                print(f"| {grain} | {setting} | {numbers} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
