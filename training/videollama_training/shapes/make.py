"""Writes a data set of the synthetic world: clips, images, audio, and JSON files for training and held-out evaluation."""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import av
import numpy as np

from videollama_training.shapes.questions import ask, ask_image, ask_picture, ask_text
from videollama_training.shapes.sounds import (
    ask_sound,
    ask_sounding,
    draw_sound,
    draw_sounding_scene,
    render_sound,
    write_flac,
    write_sounding_clip,
)
from videollama_training.shapes.wording import Item
from videollama_training.shapes.world import (
    FRAMES_PER_SECOND,
    SCENES,
    draw_picture,
    draw_scene,
    render_clip,
    render_frame,
)

QUESTIONS, PICTURE_QUESTIONS = 8, 4  # per clip, and per image of the first stage
IMAGE_SHARE = 0.1  # share of images among clips
# Folders of media, each with a JSON file of the same name.
PICTURES, TEXTS, TRAIN, HELD_OUT, SOUNDS = "pictures", "texts", "train", "held_out", "sounds"


def write_clip(path: Path, frames: np.ndarray, rate: int = FRAMES_PER_SECOND) -> None:
    """Write frames uint8 [T, H, W, 3] as H.264 in mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_media(folder: Path, number: int, seed: int, held_out: bool) -> list[dict]:
    """Write one clip or image, and return the samples about it. The result depends only on the arguments."""
    split = HELD_OUT if held_out else TRAIN
    random = Random(f"{seed}/{split}/{number}")
    is_image = random.random() < IMAGE_SHARE
    scene = draw_scene(random, "count" if is_image else SCENES[number % len(SCENES)], held_out)
    name = f"{number:05d}.{'png' if is_image else 'mp4'}"
    if is_image:
        render_frame(scene, 0.0).save(folder / name)
    else:
        write_clip(folder / name, render_clip(scene))
    items = (ask_image if is_image else ask)(scene, random, QUESTIONS)
    return [_entry(f"{number:05d}-{place}", f"{split}/{name}", item) for place, item in enumerate(items)]


def _entry(name: str, file: str, item: Item, with_audio: bool = False) -> dict:
    kind = {"": "text", "png": "image", "flac": "audio"}.get(file.rpartition(".")[2], "video")
    about = {key: value for key, value in asdict(item).items() if key not in ("question", "answer")}
    return {
        "id": name,
        **({kind: file} if file else {}),
        **({"with_audio": True} if with_audio else {}),
        "conversations": [
            # The served prompt has a newline before the question, even without media.
            {"from": "human", "value": f"<{kind}>\n{item.question}" if file else f"\n{item.question}"},
            {"from": "gpt", "value": _sentence(item.answer)},
        ],
        **about,
    }


def _sentence(answer: str) -> str:
    return answer[0].upper() + answer[1:] + "."


def make_picture(folder: Path, number: int, seed: int) -> list[dict]:
    """Write one image, and return a caption and a few questions."""
    random = Random(f"{seed}/picture/{number}")
    scene = draw_picture(random)
    name = f"{number:05d}.png"
    render_frame(scene, 0.0).save(folder / name, compress_level=1)
    items = ask_picture(scene, random, PICTURE_QUESTIONS)
    return [_entry(f"{number:05d}-{place}", f"{PICTURES}/{name}", item) for place, item in enumerate(items)]


def make_text(folder: Path, number: int, seed: int) -> list[dict]:
    """Return one question without media."""
    item = ask_text(Random(f"{seed}/text/{number}"))
    return [_entry(f"text-{number:05d}", "", item)]


def make_sound(folder: Path, number: int, seed: int, held_out: bool) -> list[dict]:
    """Write one audio file, or (every third time) one clip with beeps, and return the samples about it."""
    random = Random(f"{seed}/{'held out' if held_out else 'train'}/sound/{number}")
    if number % 3 == 2:
        name = f"{number:05d}.mp4"
        sounding = draw_sounding_scene(random, held_out)
        write_sounding_clip(folder / name, sounding)
        items = ask_sounding(sounding)
    else:
        name = f"{number:05d}.flac"
        sound = draw_sound(random, held_out)
        write_flac(folder / name, render_sound(sound))
        items = ask_sound(sound, random)
    has_audio, file = name.endswith(".mp4"), f"{folder.name}/{name}"
    return [_entry(f"sound-{number:05d}-{place}", file, item, has_audio) for place, item in enumerate(items)]


def make_split(
    folder: Path,
    name: str,
    make: Callable[[Path, int], list[dict]],
    number: int,
    tick: Callable[[], None],
    workers: int = 2,
) -> list[dict]:
    """Write `number` media to the folder `name`, and their samples to `name`.json next to it. Returns: the samples."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    entries: list[dict] = []
    with ProcessPoolExecutor(workers) as pool:
        for samples in pool.map(partial(make, folder / name), range(number), chunksize=32):
            entries += samples
            tick()
    (folder / f"{name}.json").write_text(json.dumps(entries, indent=0, ensure_ascii=False), "utf-8")
    return entries
