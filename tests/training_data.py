"""Data sets and parts of models for the tests of training, in the layouts of the published ones, from the golden media."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from conftest import MEDIA, checkpoint, language_folder
from videollama_converters.convert import convert
from videollama_converters.export.split_language_model import split_language_model
from videollama_core.checkpoint.files import read_json
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.generation.onnx_runner import OnnxRunner
from videollama_core.model import audio, vision
from videollama_core.pipeline import Pipeline
from videollama_core.prompt import MODALITIES
from videollama_core.protocol.messages import SamplingOptions

PICTURES = ("image_41x83.jpg", "image_90x50.png")
CLIPS = ("three_frames_80x44.mp4", "one_frame_50x90.mp4")
SOUND = "tone_16k_mono_4s.wav"
CLIP_WITH_SOUND = "alac16k_96x64.mp4"


def sample(key: str, path: str | None, placeholder: str, turns: int = 1) -> dict[str, Any]:
    messages = []
    for turn in range(turns):
        question = f"{placeholder}\nWhat is it?" if not turn and path else "And what else?"
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": f"It is number {turn}."}]
    return ({key: path} if path else {}) | {"conversations": messages}


def place(folder: Path, name: str, samples: list[dict[str, Any]]) -> None:
    """The list, and the media that it names: golden files of those names."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": number} | each for number, each in enumerate(samples)]
    (folder / name).write_text(json.dumps(numbered), "utf-8")
    for each in samples:
        for kind in ("image", "video", "audio"):
            if kind in each:
                (folder / each[kind]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(MEDIA / Path(each[kind]).name, folder / each[kind])


def videollava_pt(folder: Path) -> Path:
    clips = [sample("video", f"valley/{name}", "<video>") for name in CLIPS]
    pictures = [sample("image", f"llava_image/{name}", "<image>") for name in PICTURES]
    place(folder, "valley_llavaimage.json", clips + pictures)
    return folder


def videollava_sft(folder: Path) -> Path:
    clips = [sample("video", f"videochatgpt_tune/{name}", "<video>") for name in CLIPS]
    pictures = [sample("image", f"llava_image_tune/{name}", "<image>", turns=2) for name in PICTURES]
    place(folder, "videochatgpt_llavaimage_tune.json", [*clips, *pictures, sample("", None, "", turns=2)])
    return folder


def custom_sft(folder: Path) -> Path:
    clips = [sample("video", f"videos/{name}", "<video>") for name in CLIPS]
    pictures = [sample("image", f"images/{name}", "<image>") for name in PICTURES]
    place(folder, "custom.json", clips + pictures)
    return folder


def audio_stages(folder: Path) -> Path:
    """What the three stages read, in one folder."""
    sound = sample("audio", f"sounds/{SOUND}", "<audio>")
    place(folder, "stage1_pretrain.json", [sound])
    place(folder, "stage2_audio_text.json", [sound])
    place(folder, "stage2_audio_subset_new.json", [sound])
    place(folder, "stage2_video_subset.json", [sample("video", f"videos/{CLIPS[0]}", "<video>")])
    place(folder, "stage3_video_audio.json", [sample("video", f"videos/{CLIP_WITH_SOUND}", "<video>")])
    return folder


def plain_language_model(variant: str, folder: Path) -> Path:
    """The language model of a golden variant as its own publisher stores it."""
    base = language_folder(variant)
    if base != checkpoint(variant):
        return base
    split_language_model(open_checkpoint(checkpoint(variant)), folder, lambda: None)
    return folder


def vision_tower(variant: str, folder: Path) -> Path:
    """The tower of a golden variant with its weights."""
    parts = open_checkpoint(checkpoint(variant))
    source = parts.folders.tower
    assert source is not None
    shutil.copytree(source, folder)
    if not (folder / "model.safetensors").is_file():
        tensors = {
            name.replace(vision.PREFIX, "vision_model."): parts.read(name).contiguous().clone()
            for name in parts.names()
            if name.startswith(vision.PREFIX)
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def split_audio(folder: Path) -> tuple[Path, Path]:
    """The golden audio-visual checkpoint as one without audio, and BEATs' file as it is published."""
    source, seen = checkpoint("av-qwen2-siglip"), folder / "checkpoint"
    shutil.copytree(source.parent, folder, ignore=shutil.ignore_patterns("golden.*", "model.safetensors"))
    parts = open_checkpoint(source)
    heard = (audio.PREFIX, audio.PROJECTOR_PREFIX)
    tensors = {name: parts.read(name).contiguous().clone() for name in parts.names() if not name.startswith(heard)}
    save_file(tensors, seen / "model.safetensors", metadata={"format": "pt"})
    content = read_json(seen / "config.json")
    for key in ("mm_audio_tower", "mm_hidden_size_a", "hidden_size_a", "mm_projector_a_type", "tune_mm_mlp_adapter_a"):
        del content[key]
    (seen / "config.json").write_text(json.dumps(content), "utf-8")
    tower = {
        name.removeprefix(audio.PREFIX): parts.read(name).float()
        for name in parts.names()
        if name.startswith(audio.PREFIX)
    }
    config = {
        "encoder_layers": 3,
        "deep_norm": True,
        "layer_norm_first": False,
        "conv_pos": 128,
        "finetuned_model": True,
    }
    torch.save({"cfg": config, "model": tower}, folder / "BEATs.pt")
    return seen, folder / "BEATs.pt"


def answers(written: Path, kind: str, medium: str) -> list[int]:
    """Token ids of the in-process pipeline's answer."""
    files, options = [(MEDIA / medium).read_bytes()], SamplingOptions(max_new_tokens=3)
    return (
        Pipeline(written).answer([{"role": "user", "content": "What is it?"}], kind, files, options=options).output_ids
    )


def converts_and_answers(written: Path, kind: str, medium: str, folder: Path, **near: Path) -> str:
    """The checkpoint through the converter; its graphs and the PyTorch pipeline agree on the answer's first token.

    Args:
        near: tower and base, where the checkpoint does not name folders.
    """
    bundle = Bundle.open(convert(written, folder, **near))
    oracle = Pipeline(written, **near)
    media = oracle.prepare(kind, [(MEDIA / medium).read_bytes()])
    tokens = MediaEncoder(bundle).encode(media.frames, media.filterbank if len(media.filterbank) else None)
    with torch.inference_mode():
        wanted = oracle.media_tokens(media)
        prompt = oracle.prompt([{"role": "user", "content": "What is it?"}], MODALITIES[kind], len(wanted))
        scores = next(oracle.logits(prompt, wanted))
    assert np.abs(tokens - wanted.numpy()).max() < 1e-3
    ids = prompt.input_ids.astype(np.int64)
    served = OnnxRunner(bundle, 1, 4096).prefill(0, ids, tokens, ids != oracle.tokenizer.pad_id)
    assert np.abs(served - scores).max() < 1e-2
    return oracle.tokenizer.decode([int(served.argmax())])
