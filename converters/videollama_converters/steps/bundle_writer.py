"""Runs conversion steps: each writes to a temporary folder, is moved into place when complete, and is reused while valid.

A step is valid while its key (source files, settings, code) equals the recorded one and every file still has its hash. The
manifest is removed before the first change and written after the last one: a killed conversion never looks complete.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EIO
from pathlib import Path

from safetensors import SafetensorError

from videollama_core.engines.bundle import MANIFEST
from videollama_core.protocol.errors import ArtifactMismatch

STATE = ".steps.json"
PARTIAL = ".partial"
LOCK = ".lock"


@dataclass(frozen=True)
class Step:
    """One part of a conversion.

    `run(folder)` writes files below an empty folder; they are moved to the same relative paths of the bundle. `owns` names
    the files and folders of the bundle that belong to the step.
    """

    name: str
    inputs: object  # serializable as JSON: everything that decides the output
    owns: tuple[str, ...]
    run: Callable[[Path], None]
    work: int = 1  # number of calls to Progress.advance


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


class BundleWriter:
    """Writes a bundle's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        state = root / STATE
        self._state: dict[str, dict] = {}
        self._is_ours = state.is_file()
        if self._is_ours:
            try:
                self._state = json.loads(state.read_text("utf-8"))
            except ValueError:
                self._state = {}  # truncated by a crash: every step runs again

    @contextmanager
    def locked(self) -> Iterator["BundleWriter"]:
        """Hold the folder's lock.

        Raises: ArtifactMismatch if another conversion holds it; OSError, which names a file or the folder, if it cannot be
            written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactMismatch(
                    f"another conversion is writing {self.root}; wait for it or choose another --out"
                ) from None
            shutil.rmtree(self.root / PARTIAL, ignore_errors=True)
            try:
                yield self
            except (OSError, SafetensorError) as error:  # such as a full disk, which names no file
                if getattr(error, "filename", None):
                    raise
                raise OSError(
                    getattr(error, "errno", EIO), getattr(error, "strerror", str(error)), self.root
                ) from error
            finally:
                shutil.rmtree(self.root / PARTIAL, ignore_errors=True)

    def check_owned(self, steps: list[Step]) -> None:
        """Raises: ArtifactMismatch if the steps would replace files or folders that no conversion has written."""
        names = [name for step in steps for name in step.owns]
        foreign = [name for name in (*names, MANIFEST) if os.path.lexists(self.root / name)]
        if foreign and not self._is_ours:
            raise ArtifactMismatch(
                f"{self.root} holds {foreign[0]}, which a conversion would replace, but no {STATE} of an earlier conversion: "
                "choose another --out"
            )

    def is_valid(self, step: Step) -> bool:
        """Whether the step's recorded result can be reused."""
        record = self._state.get(step.name)
        if record is None or record["key"] != _key(step):
            return False
        return all(
            (self.root / name).is_file()
            and (self.root / name).stat().st_size == entry["bytes"]
            and sha256(self.root / name) == entry["sha256"]
            for name, entry in record["files"].items()
        )

    def make(self, step: Step) -> None:
        """Run a step and replace its files. Removes the manifest."""
        (self.root / MANIFEST).unlink(missing_ok=True)
        self._state.pop(step.name, None)
        self._save()
        partial = self.root / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        step.run(partial)
        for name in step.owns:
            _remove(self.root / name)
        files = {}
        for source in files_below(partial):
            name = source.relative_to(partial).as_posix()
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
            files[name] = {"bytes": target.stat().st_size, "sha256": sha256(target)}
        self._state[step.name] = {"key": _key(step), "files": files}
        self._save()

    def files(self) -> dict[str, dict]:
        """Path -> {"bytes", "sha256"} of every file of every step."""
        return {name: entry for record in self._state.values() for name, entry in record["files"].items()}

    def write_manifest(self, content: dict) -> None:
        write_json(self.root / MANIFEST, content)

    def _save(self) -> None:
        write_json(self.root / STATE, self._state)


def _key(step: Step) -> str:
    return hashlib.sha256(json.dumps(step.inputs, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    os.replace(temporary, path)
