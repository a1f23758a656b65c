"""Draws a contact sheet of the model's input: one row of sampled frames per clip, with text below."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videollama_core.media.video import Segment, load_media

TILE = 112  # pixels of a frame's longer side
GAP, LINE = 6, 18


@dataclass(frozen=True)
class Strip:
    """One clip with its question and answer."""

    frames: Sequence[np.ndarray]  # uint8 [H, W, 3]
    seconds: Sequence[float]  # timestamps; NaN for media without
    lines: Sequence[tuple[str, str]]  # text and colour


def read_strip(path: Path, num_frames: int, lines: Sequence[tuple[str, str]]) -> Strip:
    """The frames that a checkpoint with `num_frames` frames is given; an image is one frame."""
    kind = "image" if path.suffix.lower() in (".png", ".jpg", ".jpeg") else "video"
    chosen = load_media(kind, [path.read_bytes()], Segment(), num_frames)
    return Strip(chosen.rgb, chosen.time.tolist(), lines)


def draw_contact_sheet(strips: Sequence[Strip], path: Path) -> None:
    """Write the strips as one image, below each other."""
    font = ImageFont.load_default(size=14)
    small = ImageFont.load_default(size=10)
    columns = max(len(strip.frames) for strip in strips)
    heights = [TILE + LINE * len(strip.lines) + 3 * GAP for strip in strips]
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for strip, height in zip(strips, heights, strict=True):
        for place, (frame, second) in enumerate(zip(strip.frames, strip.seconds, strict=True)):
            picture = Image.fromarray(frame)
            picture.thumbnail((TILE, TILE))
            left = GAP + place * (TILE + GAP)
            sheet.paste(picture, (left, top))
            if np.isfinite(second):
                draw.text((left + 3, top + 2), f"{second:.2f} s", "white", small, stroke_width=1, stroke_fill="black")
        for number, (text, colour) in enumerate(strip.lines):
            draw.text((GAP, top + TILE + GAP + number * LINE), text, colour, font)
        top += height
    sheet.save(path)
