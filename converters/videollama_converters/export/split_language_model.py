"""Writes the decoder as a plain Hugging Face directory, which TensorRT-LLM, ModelOpt, vLLM and transformers read."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from videollama_core.checkpoint.files import read_json
from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.checkpoint.shards import write_shards
from videollama_core.checkpoint.tokenizer_files import copy_tokenizer
from videollama_core.model.config import LanguageConfig
from videollama_core.model.decoder import Decoder

ARCHITECTURES = {
    "mistral": ("MistralForCausalLM", "mistral"),
    "mixtral": ("MixtralForCausalLM", "mixtral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
}
# config.json keys that belong to the video model or to training, not to the decoder.
_VIDEO_KEYS = (
    "num_frames",
    "image_aspect_ratio",
    "tokenizer_padding_side",
    "tokenizer_model_max_length",
    "freeze_mm_mlp_adapter",
    "hidden_size_a",
    "max_sequence_length",
    "_name_or_path",
    "use_cache",
    "transformers_version",
)
_VIDEO_PREFIXES = ("mm_", "tune_mm", "use_mm")


def split_language_model(parts: CheckpointParts, folder: Path, tick: Callable[[], None]) -> None:
    """Write the language model's tensors in their stored dtype, its config and its tokenizer.

    Holds one output shard (2 GiB) at a time. `tick` is called for each tensor.
    """
    folder.mkdir(parents=True)
    sources = parts.language_sources()
    if parts.config.language.tied:
        sources.pop("lm_head.weight", None)
    with torch.device("meta"):
        elements = {name: value.numel() for name, value in Decoder(parts.config.language).state_dict().items()}
    write_shards(sources, folder, tick, elements)
    write_config(parts.folders.checkpoint, parts.config.language, folder)
    copy_tokenizer(parts.folders.language, folder)


def write_config(source: Path, language: LanguageConfig, folder: Path) -> None:
    """Write a plain decoder's config.json to `folder`, from that of the video model in `source`."""
    content = {
        key: value
        for key, value in read_json(source / "config.json").items()
        if key not in _VIDEO_KEYS and not key.startswith(_VIDEO_PREFIXES)
    }
    architecture, model_type = ARCHITECTURES[language.family]
    content.update(architectures=[architecture], model_type=model_type)
    (folder / "config.json").write_text(json.dumps(content, indent=2), "utf-8")
