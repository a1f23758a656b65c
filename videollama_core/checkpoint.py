"""Checkpoint folders: read tensors one at a time, split them by part, and prove that none is missing or left over.

safetensors files are read lazily; `.bin` pickles only with weights_only. Whole models are never held in memory.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from videollama_core import connector, vision
from videollama_core.config import ModelConfig, read_json
from videollama_core.connector import Connector
from videollama_core.decoder import Decoder
from videollama_core.errors import CheckpointMismatch
from videollama_core.vision import VisionEncoder

# Tensors that a checkpoint may hold and the answer never needs, by part.
_UNUSED_VISION = ("post_layernorm.", "head.", "embeddings.position_ids")
_UNUSED_LANGUAGE = (".rotary_emb.inv_freq",)
_TOWER_FILE_PREFIX = "vision_model."  # in the tower's own files; everything else there is its text half


class Shards:
    """The tensors of a folder by name, wherever they are stored."""

    def __init__(self, files: dict[str, Path], folder: Path) -> None:
        self._files = files
        self.folder = folder
        self._open_path: Path | None = None
        self._open_file: dict[str, Tensor] | object = {}

    @classmethod
    def open(cls, folder: Path) -> "Shards":
        """Index the folder: a single file, or the shards that its index names. Raises: CheckpointMismatch."""
        if not folder.is_dir():
            raise CheckpointMismatch(f"{folder} is not a folder; name the folder of a checkpoint")
        for stem in ("model.safetensors", "pytorch_model.bin"):
            index = folder / f"{stem}.index.json"
            if index.is_file():
                names = read_json(index).get("weight_map")
                if not isinstance(names, dict):
                    raise CheckpointMismatch(f"{index} has no weight_map")
                missing = sorted({file for file in names.values() if not (folder / file).is_file()})
                if missing:
                    raise CheckpointMismatch(
                        f"{folder} lacks {len(missing)} shards that {index.name} names: {missing[0]}, ..."
                    )
                shards = cls({name: folder / file for name, file in names.items()}, folder)
                shards._check_index(index.name)
                return shards
            if (folder / stem).is_file():
                return cls({name: folder / stem for name in _names_in(folder / stem)}, folder)
        raise CheckpointMismatch(f"{folder} holds no model.safetensors, no pytorch_model.bin and no index of either")

    def _check_index(self, index: str) -> None:
        stored = {name: path for path in sorted(set(self._files.values())) for name in _names_in(path)}
        wrong = sorted(set(stored) ^ set(self._files))
        if wrong:
            where = "is stored but not in" if wrong[0] in stored else "is not stored, but named by"
            raise CheckpointMismatch(f"{self.folder}: tensor {wrong[0]} {where} {index} ({len(wrong)} such tensors)")

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return list(self._files)

    def paths(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        path = self._files[name]
        if path != self._open_path:
            self._open_file, self._open_path = _open_tensors(path), path
        file = self._open_file
        return file[name] if isinstance(file, dict) else file.get_tensor(name)  # type: ignore[attr-defined]


def _open_tensors(path: Path) -> "dict[str, Tensor] | object":
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, framework="pt")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointMismatch(f"{path} cannot be read: {error}") from error
    except Exception as error:  # pickle's own errors have no common root
        raise CheckpointMismatch(f"{path} is not a plain file of tensors, so it is not opened: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointMismatch(f"{path} holds something else than tensors by name")
    return content


def _names_in(path: Path) -> list[str]:
    file = _open_tensors(path)
    return list(file) if isinstance(file, dict) else list(file.keys())  # type: ignore[attr-defined]


class CheckpointParts:
    """A chat checkpoint's tensors, split into vision tower, connector and language model."""

    def __init__(self, config: ModelConfig, folder: Path, tower: Path | None = None) -> None:
        self.config = config
        self.shards = Shards.open(folder)
        names = self.shards.names()
        self._vision = {
            name.removeprefix(vision.PREFIX): (self.shards, name) for name in names if name.startswith(vision.PREFIX)
        }
        if not self._vision:
            self._vision = self._read_tower_folder(tower, folder)
        self._connector = {
            name.removeprefix(connector.PREFIX): (self.shards, name)
            for name in names
            if name.startswith(connector.PREFIX)
        }
        self.language_names = [
            name
            for name in names
            if not name.startswith((vision.PREFIX, connector.PREFIX)) and not name.endswith(_UNUSED_LANGUAGE)
        ]

    def _read_tower_folder(self, tower: Path | None, folder: Path) -> dict[str, tuple[Shards, str]]:
        if tower is None:
            raise CheckpointMismatch(
                f"{folder} holds no weights of the vision tower ({vision.PREFIX}*); name the tower's folder with --tower"
            )
        shards = Shards.open(tower)
        return {
            name.removeprefix(_TOWER_FILE_PREFIX): (shards, name)
            for name in shards.names()
            if name.startswith(_TOWER_FILE_PREFIX)
        }

    def vision_sources(self) -> "Sources":
        later = tuple(f"encoder.layers.{n}." for n in range(self.config.vision.used_layers, self.config.vision.layers))
        unused = (*_UNUSED_VISION, *later)
        return _readers({name: source for name, source in self._vision.items() if not name.startswith(unused)})

    def connector_sources(self) -> "Sources":
        return _readers(self._connector)

    def language_sources(self) -> "Sources":
        return _readers({name: (self.shards, name) for name in self.language_names})

    def vision_encoder(self) -> VisionEncoder:
        return fill(VisionEncoder(self.config.vision, self.config.pixels), self.vision_sources(), "vision tower")

    def connector(self) -> Connector:
        return fill(Connector(self.config), self.connector_sources(), "connector")

    def decoder(self) -> Decoder:
        return fill(Decoder(self.config.language), self.language_sources(), "language model")

    def check(self) -> None:
        """Raises: CheckpointMismatch unless every part is complete, nothing is left over, and all shapes fit."""
        with torch.device("meta"):
            modules = (
                VisionEncoder(self.config.vision, self.config.pixels),
                Connector(self.config),
                Decoder(self.config.language),
            )
        parts = ("vision tower", "connector", "language model")
        sources = (self.vision_sources(), self.connector_sources(), self.language_sources())
        for module, part, readers in zip(modules, parts, sources, strict=True):
            expected = module.state_dict()
            _check_names(expected, readers, _is_tied(module), part)
            for name, read in readers.items():
                _check_tensor(name, read(), expected[name], part)


Sources = dict[str, Callable[[], Tensor]]


def _readers(sources: dict[str, tuple[Shards, str]]) -> Sources:
    return {name: partial(shards.read, stored) for name, (shards, stored) in sources.items()}


def _is_tied(module: nn.Module) -> bool:
    return isinstance(module, Decoder) and module.config.tied


def _check_names(expected: Iterable[str], found: Iterable[str], tied: bool, part: str) -> None:
    expected, found = set(expected), set(found)
    if tied:
        expected.discard("lm_head.weight")
        found.discard("lm_head.weight")
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing:
        raise CheckpointMismatch(
            f"the {part} lacks {len(missing)} tensors: {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
        )
    if extra:
        raise CheckpointMismatch(
            f"the checkpoint holds {len(extra)} tensors that no part of the model uses: {', '.join(extra[:3])}"
            f"{', ...' * (len(extra) > 3)}"
        )


def _check_tensor(name: str, found: Tensor, wanted: Tensor, part: str) -> None:
    if found.shape != wanted.shape:
        raise CheckpointMismatch(f"{part}: {name} is {list(found.shape)}; the config wants {list(wanted.shape)}")
    if not found.is_floating_point():
        raise CheckpointMismatch(f"{part}: {name} is {found.dtype}; floating point was wanted")
    if not torch.isfinite(found).all():
        raise CheckpointMismatch(f"{part}: {name} holds values that are not finite: the file is damaged")


def fill(module: nn.Module, sources: Sources, part: str) -> Any:
    """Copy stored tensors into the module, as float32. Raises: CheckpointMismatch if one is missing, left over or misshapen."""
    parameters = module.state_dict()
    _check_names(parameters, sources, _is_tied(module), part)
    for name, read in sources.items():
        tensor = read()
        _check_tensor(name, tensor, parameters[name], part)
        parameters[name].copy_(tensor)
    if isinstance(module, Decoder) and module.config.tied:
        module.lm_head.weight = module.model.embed_tokens.weight
    return module.eval().requires_grad_(False)
