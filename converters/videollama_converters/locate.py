"""Locates the parts of a checkpoint: local folders, or repositories of the Hugging Face hub, which it downloads."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    origin: dict[str, str] = {}

    def find(part: str, name: str, weights: bool = True, progress: Progress = progress) -> Path:
        if Path(name).exists() or not is_hub_id(name):
            return Path(name)
        # Imported late: a conversion of folders works without huggingface_hub, or with an older one.
        from videollama_converters.hub.snapshot import fetch

        folder = fetch(name, part, revision if part == "checkpoint" else None, weights, progress, download)
        origin[part] = f"{name}@{folder.name}"
        return folder

    if revision and (Path(checkpoint).exists() or not is_hub_id(checkpoint)):
        raise InvalidRequest(f"--revision {revision} needs the id of a hub repository, but {checkpoint} is a path")
    if check_early and download and not Path(checkpoint).exists() and is_hub_id(checkpoint):
        check_early(find("checkpoint", checkpoint, weights=False, progress=SilentProgress()))
    folder = find("checkpoint", checkpoint)
    if not folder.is_dir():  # reported by the conversion
        return Located(folder, Path(tower) if tower else None, Path(base) if base else None, origin)
    content = read_json(folder / "config.json") if "checkpoint" in origin else {}

    def named(key: str) -> str | None:
        """The hub id that a downloaded checkpoint's config names, unless a folder of that name lies next to it."""
        name = str(content.get(key) or "")
        return name if is_hub_id(name) and find_named_folder(folder, name) is None else None

    language: Path | None = folder
    base_folder = Path(base) if base else None
    if find_layout(folder) != "chat":
        if base_name := base or named("_name_or_path"):
            base_folder = find("base", base_name)
        language = base_folder or find_named_folder(folder, str(content.get("_name_or_path") or ""))
    tower_folder = Path(tower) if tower else None
    tower_name = tower or named("mm_vision_tower")
    if tower_name and language and language.is_dir():
        lacks_weights = not any(name.startswith(vision.PREFIX) for name in Shards.open(language).names())
        if tower or lacks_weights or tower_name not in TOWERS:
            tower_folder = find("tower", tower_name, weights=lacks_weights)
    return Located(folder, tower_folder, base_folder, origin)
