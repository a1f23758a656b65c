"""The model repository of a bundle: the tracked stages, ready for `tritonserver --model-repository`."""

import shutil
from importlib import resources
from pathlib import Path

from videollama_core.contract import STAGES
from videollama_core.errors import ArtifactMismatch


def tracked_repository() -> Path:
    """model_repository/ of this source tree, or the copy inside the installed package."""
    for folder in (
        Path(__file__).parents[2] / "model_repository",
        Path(str(resources.files("videollama_core") / "model_repository")),
    ):
        if (folder / "videollama2" / "config.pbtxt").is_file():
            return folder
    raise ArtifactMismatch(
        "the stages (model_repository/) are missing from this installation; install the package again"
    )


def assemble(target: Path) -> None:
    """Copy every stage. An ensemble's version folder is empty, and Triton wants it there."""
    source = tracked_repository()
    for name in STAGES:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
