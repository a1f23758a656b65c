"""The command `vl2 shapes`."""

from functools import partial
from pathlib import Path

import click
from tqdm import tqdm

_COUNT = click.IntRange(min=0)


@click.command(epilog="Example: vl2 shapes --out build/shapes --pictures 2000 --clips 1000")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Write the data set to this folder.")
@click.option(
    "--pictures",
    type=_COUNT,
    default=16000,
    show_default=True,
    help="Draw this many images with simple questions, for the first training stage.",
)
@click.option(
    "--texts",
    type=_COUNT,
    default=40000,
    show_default=True,
    help="Write this many questions without media, which state the fact that they ask about.",
)
@click.option(
    "--clips",
    type=_COUNT,
    default=12000,
    show_default=True,
    help="Draw this many clips, a tenth of them images, with questions.",
)
@click.option(
    "--held-out",
    type=_COUNT,
    default=60,
    show_default=True,
    help="Draw this many clips of combinations that are not in training.",
)
@click.option(
    "--audio-samples",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Generate this many audio files, and clips with beeps, with questions.",
)
@click.option("--seed", default=1, show_default=True, help="Set the random seed.")
@click.option(
    "--start/--no-start", default=True, show_default=True, help="Write the tiny checkpoint to start training from."
)
@click.option(
    "--tower-steps",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Pretrain its vision tower separately for this many steps.",
)
@click.option(
    "--add-audio-tower",
    "add_audio_tower_to",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Start from this checkpoint, and add an audio tower to it.",
)
@click.option(
    "--audio-tower-steps",
    type=_COUNT,
    default=0,
    show_default=True,
    help="Pretrain that audio tower separately for this many steps.",
)
def shapes(
    out: Path,
    pictures: int,
    texts: int,
    clips: int,
    held_out: int,
    audio_samples: int,
    seed: int,
    start: bool,
    tower_steps: int,
    add_audio_tower_to: Path | None,
    audio_tower_steps: int,
) -> None:
    """Generate a data set of moving shapes, in the reference's training format.

    OUT gets pictures.json, texts.json, train.json and held_out.json with their media, and OUT/start, a checkpoint in the
    published layout with its own tokenizer and random weights, except for the pretrained tower.
    """
    from videollama_training.shapes.make import (
        HELD_OUT,
        PICTURES,
        SOUNDS,
        TEXTS,
        TRAIN,
        make_media,
        make_picture,
        make_sound,
        make_split,
        make_text,
    )
    from videollama_training.shapes.start import make_start

    makers = (
        (PICTURES, partial(make_picture, seed=seed), pictures),
        (TEXTS, partial(make_text, seed=seed), texts),
        (TRAIN, partial(make_media, seed=seed, held_out=False), clips),
        (HELD_OUT, partial(make_media, seed=seed, held_out=True), held_out),
        (SOUNDS, partial(make_sound, seed=seed, held_out=False), audio_samples),
        (f"{SOUNDS}_{HELD_OUT}", partial(make_sound, seed=seed, held_out=True), audio_samples // 20),
    )
    entries = []
    for name, make, number in makers:
        if not number:
            continue
        with tqdm(total=number, desc=f"{name:9}", unit=" media") as bar:
            samples = make_split(out, name, make, number, bar.update)
            entries += samples if name != TEXTS else []  # the tokenizer is trained on samples with media
    if add_audio_tower_to is not None:
        from videollama_training.shapes.audio_tower import add_audio_tower

        add_audio_tower(add_audio_tower_to, out / "start", seed, audio_tower_steps)
    elif start:
        words = (message["value"] for entry in entries for message in entry["conversations"])
        make_start(out / "start", words, seed, tower_steps)
    click.echo(f"{out} is ready")
