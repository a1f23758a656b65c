"""Files of one repository of the Hugging Face hub -> its cache, going on where an earlier run stopped.

huggingface_hub keeps every file that is whole, but deletes one that is not when its process ends (2.4; a shard of a
checkpoint has up to 5 GB). So large files are fetched here, into HASH.partial beside the cache's blobs.
"""

import fcntl
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

from huggingface_hub import hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers

from videollama_converters.steps.bundle_writer import sha256
from videollama_converters.steps.progress import Progress
from videollama_core.protocol.errors import Cancelled, DiskFull, DownloadFailed, HubUnreachable

MEGABYTE = 10**6


class Download:
    """What is still missing of a repository's files -> its folder in the cache."""

    def __init__(self, name: str, folder: Path, files: list[RepoSibling], progress: Progress) -> None:
        self._name, self._folder, self._progress = name, folder, progress
        self._blobs = folder.parents[1] / "blobs"
        self._files = [file for file in files if not (folder / file.rfilename).exists()]
        self._total = sum(file.size or 0 for file in self._files)
        self._bytes = 0  # that are there

    def run(self) -> None:
        self._check_disk()
        self._progress.start(f"download {self._name.split('/')[1]} (MB)", self._total // MEGABYTE)
        try:
            for file in self._files:
                if file.lfs is not None:
                    self._fetch_large(file.rfilename, file.lfs.size, file.lfs.sha256)
                else:
                    self._count(file.size or 0)
                hf_hub_download(
                    self._name, file.rfilename, revision=self._folder.name
                )  # a blob that is there is linked
        except KeyboardInterrupt:
            raise Cancelled(
                f"stopped with {self._told()} of {self._name} on this machine ({self._blobs}); "
                "the same command goes on from there"
            ) from None
        except (HTTPError, OSError) as error:
            if isinstance(error, HfHubHTTPError) or getattr(error, "errno", None):
                raise
            raise HubUnreachable(
                f"the connection broke with {self._told()} of {self._name} on this machine ({error}); "
                "the same command goes on from there"
            ) from error
        self._progress.done(reused=not self._files)

    def _told(self) -> str:
        return f"{self._bytes / 1e9:.2f} of {self._total / 1e9:.2f} GB"

    def _check_disk(self) -> None:
        more = self._total - sum(map(self._size_there, self._files))
        place = next(path for path in (self._blobs, *self._blobs.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if more > free:
            raise DiskFull(
                f"{self._name} takes {more / 1e9:.2f} GB more, but {place} has {free / 1e9:.2f} GB free: "
                "make room, or name a folder of another disk with HF_HOME"
            )

    def _size_there(self, file: RepoSibling) -> int:
        """Bytes of a large file that are on the disk: all, of another commit that has the same file, or a part."""
        if file.lfs is None:
            return 0
        paths = (self._blobs / file.lfs.sha256, self._blobs / f"{file.lfs.sha256}.partial")
        return next((path.stat().st_size for path in paths if path.exists()), 0)

    def _fetch_large(self, file: str, size: int, digest: str) -> None:
        """A file whose hash is known -> blobs/HASH, which huggingface_hub then takes as its own."""
        blob = self._blobs / digest
        self._blobs.mkdir(parents=True, exist_ok=True)
        partial = self._blobs / f"{digest}.partial"
        if blob.exists():
            self._count(size)
            return
        with partial.open("ab") as target:
            fcntl.flock(target, fcntl.LOCK_EX)  # another process may fetch the same
            if blob.exists():
                partial.unlink(missing_ok=True)
                self._count(size)
                return
            there = target.seek(0, os.SEEK_END)
            self._count(there)
            http_get(
                hf_hub_url(self._name, file, revision=self._folder.name),
                target,
                resume_size=there,
                headers=build_hf_headers(),
                expected_size=size,
                tqdm_class=lambda **_: nullcontext(self),  # type: ignore[arg-type]
            )
            target.flush()
            if sha256(partial) != digest:
                partial.unlink()
                raise DownloadFailed(f"{file} of {self._name} arrived damaged and was deleted: run the command again")
            os.replace(partial, blob)

    def update(self, count: float = 1) -> None:
        """For http_get, which takes this for its progress bar."""
        self._count(int(count))

    def _count(self, size: int) -> None:
        before, self._bytes = self._bytes, self._bytes + size
        for _ in range(self._bytes // MEGABYTE - before // MEGABYTE):
            self._progress.advance()
