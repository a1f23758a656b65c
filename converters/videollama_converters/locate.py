"""Locates the parts of a checkpoint: local folders, or repositories of the Hugging Face hub, which it downloads."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollama_converters.steps.progress import Progress, SilentProgress
from videollama_core.checkpoint.files import read_json
from videollama_core.checkpoint.layout import find_layout
from videollama_core.checkpoint.read_config import find_named_folder
from videollama_core.checkpoint.shards import Shards
from videollama_core.checkpoint.variants import TOWERS
from videollama_core.model import vision
from videollama_core.protocol.errors import InvalidRequest

# The hub's own rule for repository names.
_ID = re.compile(r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*(?<![-.])", re.ASCII)
_LONGEST = 96


@dataclass(frozen=True)
class Located:
    """The parts of a checkpoint as local folders."""

    checkpoint: Path
    tower: Path | None
    base: Path | None
    origin: dict[str, str]  # checkpoint, tower, base -> "hub id@commit", for parts from the hub


def is_hub_id(name: str) -> bool:
    """Whether a name has the form OWNER/NAME of the hub's repositories."""
    return len(name) <= _LONGEST and _ID.fullmatch(name) is not None


def locate(
    checkpoint: str,
    tower: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    progress: Progress = SilentProgress(),
    download: bool = True,
    check_early: Callable[[Path], None] | None = None,
) -> Located:
    """Local folders of a checkpoint and its parts; parts named by a hub id are downloaded. An existing path takes precedence.

    For a checkpoint of the hub, the tower and base model that its config names are downloaded too, unless a folder is given
    or lies next to it.

    Args:
        revision: branch, tag or commit of the checkpoint; parts that the config names are taken from their main branch.
        download: False uses only the cache.
        check_early: called with the folder of a hub checkpoint before its weights are downloaded; may raise to refuse it.
    Raises: DownloadFailed and its subclasses, InvalidRequest, Cancelled when Ctrl-C stops a download (downloaded data is kept).
    """
    hub = _Hub(revision, progress, download)
    if revision and not _is_on_hub(checkpoint):
        raise InvalidRequest(f"--revision {revision} needs the id of a hub repository, but {checkpoint} is a path")
    if check_early and download and _is_on_hub(checkpoint):
        check_early(hub.folder_of("checkpoint", checkpoint, weights=False, is_silent=True))
    folder = hub.folder_of("checkpoint", checkpoint)
    tower_folder, base_folder = Path(tower) if tower else None, Path(base) if base else None
    if not folder.is_dir():  # reported by the conversion
        return Located(folder, tower_folder, base_folder, hub.origin)
    content = read_json(folder / "config.json") if "checkpoint" in hub.origin else {}
    language: Path | None = folder
    if find_layout(folder) != "chat":
        if base_name := base or _named_id(content, "_name_or_path", folder):
            base_folder = hub.folder_of("base", base_name)
        language = base_folder or find_named_folder(folder, str(content.get("_name_or_path") or ""))
    tower_name = tower or _named_id(content, "mm_vision_tower", folder)
    if tower_name and language and language.is_dir():
        lacks_weights = not any(name.startswith(vision.PREFIX) for name in Shards.open(language).names())
        if tower or lacks_weights or tower_name not in TOWERS:
            tower_folder = hub.folder_of("tower", tower_name, weights=lacks_weights)
    return Located(folder, tower_folder, base_folder, hub.origin)


@dataclass
class _Hub:
    """The hub, for the parts of one checkpoint."""

    revision: str | None  # of the checkpoint alone
    progress: Progress
    download: bool
    origin: dict[str, str] = field(default_factory=dict)  # as in `Located`

    def folder_of(self, part: str, name: str, weights: bool = True, is_silent: bool = False) -> Path:
        """The folder of a part, downloaded if its name is that of a repository."""
        if not _is_on_hub(name):
            return Path(name)
        # Imported late: a conversion of folders works without huggingface_hub, or with an older one.
        from videollama_converters.hub.snapshot import fetch

        revision = self.revision if part == "checkpoint" else None
        progress = SilentProgress() if is_silent else self.progress
        folder = fetch(name, part, revision, weights, progress, self.download)
        self.origin[part] = f"{name}@{folder.name}"
        return folder


def _is_on_hub(name: str) -> bool:
    """Whether a name means a repository of the hub; an existing path takes precedence."""
    return not Path(name).exists() and is_hub_id(name)


def _named_id(content: dict[str, Any], key: str, folder: Path) -> str | None:
    """The hub id that a downloaded checkpoint's config names, unless a folder of that name lies next to it."""
    name = str(content.get(key) or "")
    return name if is_hub_id(name) and find_named_folder(folder, name) is None else None
