"""Checkpoint folders: their tensors split by part, and the check that none is missing or left over."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videollama_core.checkpoint.files import find_file, read_json, shown
from videollama_core.checkpoint.fill import check_names, check_tensor, fill, is_tied
from videollama_core.checkpoint.layout import CONNECTOR_FILE, NON_LORA_FILE, Folders, find_layout
from videollama_core.checkpoint.lora import adapter_file, merge_adapters, renamed
from videollama_core.checkpoint.read_config import find_named_folder, read_model_config, read_name
from videollama_core.checkpoint.shards import Shards, Sources
from videollama_core.model import audio, connector, vision
from videollama_core.model.audio import AudioEncoder
from videollama_core.model.config import AudioConfig, ModelConfig
from videollama_core.model.connector import Connector
from videollama_core.model.decoder import Decoder
from videollama_core.model.value_rules import check_model
from videollama_core.model.vision import VisionEncoder
from videollama_core.protocol.errors import CheckpointMismatch

# Tensors that a checkpoint may contain and inference never needs, by part.
_UNUSED_VISION = ("post_layernorm.", "head.", "embeddings.position_ids")
_UNUSED_LANGUAGE = (".rotary_emb.inv_freq",)
_UNUSED_AUDIO = ("predictor.",)
BIAS_TABLE = "self_attn.relative_attention_bias.weight"  # stored for every layer or the first; all are equal
_TOWER_FILE_PREFIX = "vision_model."  # in the tower's own files; everything else there is its text model


@dataclass(frozen=True)
class Module:
    """One part of the model."""

    name: str  # vision tower | connector | language model | audio tower
    make: Callable[[], nn.Module]
    sources: Sources  # its tensors, by the names of its `state_dict`


def open_checkpoint(folder: Path, tower: Path | None = None, base: Path | None = None) -> "CheckpointParts":
    """Open a checkpoint of any published layout, recognized by its files: chat, Base (`mm_projector.bin` alone), or adapters.

    Args:
        tower: folder of the vision tower; required if neither the checkpoint nor a folder near it has its weights.
        base: folder of the base language model; required for Base folders and adapters whose `_name_or_path` is not near.
    Raises: CheckpointMismatch.
    """
    if not folder.is_dir():
        raise CheckpointMismatch(f"{folder} is not a folder; name the folder of a VideoLLaMA 2 checkpoint")
    content = read_json(folder / "config.json")
    tower = tower or find_named_folder(folder, read_name(content, "mm_vision_tower"))
    config = read_model_config(folder, tower)
    layout = find_layout(folder)
    if layout == "chat":
        if base is not None:
            raise CheckpointMismatch(f"{folder} is a complete (chat) checkpoint, which has no base model: omit --base")
        return CheckpointParts(config, Folders(layout, folder, tower, folder), content)
    name = read_name(content, "_name_or_path")
    base = base or find_named_folder(folder, name)
    if base is None:
        what = "a Base folder (the connector alone)" if layout == "base" else "a folder of adapters"
        raise CheckpointMismatch(
            f"{folder} is {what}; its language model {name!r} is not a folder near it: name it with --base"
        )
    _check_base(content, read_json(base / "config.json"), folder, base)
    return CheckpointParts(config, Folders(layout, folder, tower, base), content)


def _check_base(content: dict[str, Any], base: dict[str, Any], folder: Path, path: Path) -> None:
    for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size"):
        if content.get(key) != base.get(key):
            raise CheckpointMismatch(
                f"{folder} was trained on a model with {key} {shown(content.get(key))}, but {path} has {shown(base.get(key))}: "
                "name the right one with --base"
            )


class CheckpointParts:
    """A checkpoint's tensors under their published names, split into vision tower, connector and language model."""

    def __init__(
        self, config: ModelConfig, folders: Folders, content: dict[str, Any], added: Sources | None = None
    ) -> None:
        """
        Args:
            content: the checkpoint's config.json.
            added: tensors in addition to those of the folders, by published name.
        Raises: CheckpointMismatch.
        """
        self.config, self.folders, self.content = config, folders, content
        shards = Shards.open(folders.language)
        self._files = shards.paths()
        self._tensors: Sources = shards.sources()
        if not any(name.startswith(vision.PREFIX) for name in self._tensors):
            self._tensors |= self._read_tower(folders.tower, folders.language)
        if folders.layout == "base":
            self._tensors |= self._side_file(CONNECTOR_FILE).sources()
        elif folders.layout == "lora":
            if find_file(folders.checkpoint, NON_LORA_FILE):
                self._tensors |= renamed(self._side_file(NON_LORA_FILE).sources())
            merge_adapters(
                self._tensors, self._side_file(adapter_file(folders.checkpoint)).sources(), folders.checkpoint
            )
        self._tensors |= added or {}
        if any(name.startswith(audio.PREFIX) for name in self._tensors):
            self.config = replace(config, audio=self._audio_config())
            check_model(self.config, CheckpointMismatch)
        others = (vision.PREFIX, connector.PREFIX, audio.PREFIX, audio.PROJECTOR_PREFIX)
        self.language_names = [
            name for name in self._tensors if not name.startswith(others) and not name.endswith(_UNUSED_LANGUAGE)
        ]

    def _side_file(self, name: str) -> Shards:
        path = self.folders.checkpoint / name
        self._files.append(path)
        return Shards.of_file(path)

    def _read_tower(self, tower: Path | None, folder: Path) -> Sources:
        if tower is None:
            raise CheckpointMismatch(
                f"{folder} has no weights of the vision tower ({vision.PREFIX}*); name the tower's folder with --tower"
            )
        shards = Shards.open(tower)
        self._files += shards.paths()
        return {
            vision.PREFIX + name.removeprefix(_TOWER_FILE_PREFIX): read
            for name, read in shards.sources().items()
            if name.startswith(_TOWER_FILE_PREFIX)
        }

    def paths(self) -> list[Path]:
        """Every file from which weights are read, sorted."""
        return sorted(set(self._files))

    def names(self) -> list[str]:
        """Published names of all tensors, including those that inference never needs."""
        return list(self._tensors)

    def read(self, name: str) -> Tensor:
        """One tensor by its published name, with adapters merged."""
        return self._tensors[name]()

    def _below(self, prefix: str) -> Sources:
        return {name.removeprefix(prefix): read for name, read in self._tensors.items() if name.startswith(prefix)}

    def vision_sources(self) -> Sources:
        """Tensors of the vision tower by their names in VisionEncoder, without layers that are never used."""
        later = tuple(f"encoder.layers.{n}." for n in range(self.config.vision.used_layers, self.config.vision.layers))
        unused = (*_UNUSED_VISION, *later)
        return {name: read for name, read in self._below(vision.PREFIX).items() if not name.startswith(unused)}

    def connector_sources(self) -> Sources:
        """Tensors of the connector by their names in Connector."""
        return self._below(connector.PREFIX)

    def _audio_config(self) -> AudioConfig:
        """Sizes of the audio tower, from its tensors. Raises: CheckpointMismatch."""

        def shape(name: str) -> tuple[int, ...]:
            if audio.PREFIX + name not in self._tensors:
                raise CheckpointMismatch(f"the audio tower lacks {name}")
            dims = tuple(self._tensors[audio.PREFIX + name]().shape)
            if len(dims) < 2:
                raise CheckpointMismatch(f"{name} of the audio tower is {list(dims)}; expected at least 2 axes")
            return dims

        numbers = [name.split("layers.")[1].split(".")[0] for name in self._below(audio.PREFIX) if "layers." in name]
        return AudioConfig(
            width=shape("post_extract_proj.weight")[0],
            mlp_width=shape("encoder.layers.0.fc1.weight")[0],
            layers=len(set(numbers)),
            heads=shape("encoder.layers.0.self_attn.grep_a")[1],
            patch_width=shape("patch_embedding.weight")[0],
        )

    def audio_sources(self) -> Sources:
        """Tensors of tower and projector; the position convolution's weight is computed from its direction and length."""
        tower = {name: read for name, read in self._below(audio.PREFIX).items() if not name.startswith(_UNUSED_AUDIO)}
        tables = [tower.pop(name) for name in list(tower) if name.endswith(BIAS_TABLE)]
        if tables:
            tower["encoder.relative_attention_bias.weight"] = partial(_shared, tables)
        conv = "encoder.pos_conv.0.weight"
        if f"{conv}_g" in tower and f"{conv}_v" in tower:
            tower[conv] = partial(_normed_weight, tower.pop(f"{conv}_g"), tower.pop(f"{conv}_v"))
        projector = self._below(audio.PROJECTOR_PREFIX)
        return {f"tower.{name}": read for name, read in tower.items()} | {
            f"projector.{name}": read for name, read in projector.items()
        }

    def language_sources(self) -> Sources:
        """Tensors of the language model by their published names, which are those in Decoder."""
        return {name: self._tensors[name] for name in self.language_names}

    def modules(self) -> "list[Module]":
        """Every part of the model: how to create its module, and its tensors."""
        config = self.config
        modules = [
            Module("vision tower", partial(VisionEncoder, config.vision, config.pixels), self.vision_sources()),
            Module("connector", partial(Connector, config), self.connector_sources()),
            Module("language model", partial(Decoder, config.language), self.language_sources()),
        ]
        if config.audio is not None:
            make = partial(AudioEncoder, config.audio, config.language.width)
            modules.append(Module("audio tower", make, self.audio_sources()))
        return modules

    def _filled(self, name: str) -> Any:
        part = next(part for part in self.modules() if part.name == name)
        return fill(part.make(), part.sources, name)

    def vision_encoder(self) -> VisionEncoder:
        """The loaded vision tower, float32, as the other modules below. Raises: CheckpointMismatch, as they do."""
        return self._filled("vision tower")

    def connector(self) -> Connector:
        return self._filled("connector")

    def decoder(self) -> Decoder:
        return self._filled("language model")

    def audio_encoder(self) -> AudioEncoder | None:
        """The loaded audio tower and its projector; None for a checkpoint without audio."""
        return None if self.config.audio is None else self._filled("audio tower")

    def check(self) -> None:
        """Raises: CheckpointMismatch unless every part is complete, nothing is left over, and all shapes match."""
        for part in self.modules():
            with torch.device("meta"):
                module = part.make()
            expected = module.state_dict()
            check_names(expected, part.sources, is_tied(module), part.name)
            for name, read in part.sources.items():
                check_tensor(name, read(), expected[name], part.name)


def _shared(tables: list[Callable[[], Tensor]]) -> Tensor:
    """Raises: CheckpointMismatch unless all layers hold the same table."""
    first = tables[0]()
    if any(not torch.equal(first, read()) for read in tables[1:]):
        raise CheckpointMismatch("the audio tower's layers have different tables of relative positions; expected one")
    return first


def _normed_weight(read_length: Callable[[], Tensor], read_direction: Callable[[], Tensor]) -> Tensor:
    """Weight norm with one length per kernel tap, in float32."""
    direction = read_direction().float()
    return read_length().float() * direction / tap_lengths(direction)


def tap_lengths(weight: Tensor) -> Tensor:
    """Norm of each kernel tap: [out, in, taps] -> [1, 1, taps]."""
    return (weight.float().square().sum((0, 1), keepdim=True) + 1e-6).sqrt()
