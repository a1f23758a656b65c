"""The model repository of a bundle: the tracked stages, ready for `tritonserver --model-repository`."""

import re
import shutil
from importlib import resources
from pathlib import Path

from videollama_core.contract import LANGUAGE_MODEL, STAGES
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


def assemble(target: Path, parameters: dict[str, str]) -> None:
    """Copy every stage. An ensemble's version folder is empty, and Triton wants it there.

    Args:
        parameters: of the language model's stage, in place of the tracked ones.
    """
    source = tracked_repository()
    for name in STAGES:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = target / LANGUAGE_MODEL.name / "config.pbtxt"
    text = path.read_text("utf-8")
    for key, value in parameters.items():
        text, count = re.subn(rf'(key: "{key}", value {{ string_value: )"[^"]*"', rf'\g<1>"{value}"', text)
        assert count == 1, key
    path.write_text(text, "utf-8")
