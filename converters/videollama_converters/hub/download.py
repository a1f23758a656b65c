"""Downloads files of one Hugging Face hub repository into the hub's cache, resuming where an earlier run stopped.

huggingface_hub keeps every complete file, but deletes an incomplete one when its process ends (2.4; a shard of a
checkpoint has up to 5 GB). So large files are downloaded here, into HASH.partial next to the cache's blobs.
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
    """Downloads the missing files of a repository into its folder in the cache."""

    def __init__(self, name: str, folder: Path, files: list[RepoSibling], progress: Progress) -> None:
        self._name, self._folder, self._progress = name, folder, progress
        self._blobs = folder.parents[1] / "blobs"
        self._files = [file for file in files if not (folder / file.rfilename).exists()]
        self._total = sum(file.size or 0 for file in self._files)
        self._bytes = 0  # already on disk

    def run(self) -> None:
        """Download. Raises: DiskFull, Cancelled on Ctrl-C, HubUnreachable, DownloadFailed, and huggingface_hub's own errors."""
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
                )  # only links a blob that is already there
        except KeyboardInterrupt:
            raise Cancelled(
                f"stopped with {self._amount()} of {self._name} downloaded ({self._blobs}); "
                "run the same command again to resume"
            ) from None
        except (HTTPError, OSError) as error:
            if isinstance(error, HfHubHTTPError) or getattr(error, "errno", None):
                raise
            raise HubUnreachable(
                f"the connection broke with {self._amount()} of {self._name} downloaded ({error}); "
                "run the same command again to resume"
            ) from error
        self._progress.done(reused=not self._files)

    def _amount(self) -> str:
        return f"{self._bytes / 1e9:.2f} of {self._total / 1e9:.2f} GB"

    def _check_disk(self) -> None:
        missing = self._total - sum(map(self._size_on_disk, self._files))
        place = next(path for path in (self._blobs, *self._blobs.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if missing > free:
            raise DiskFull(
                f"{self._name} needs {missing / 1e9:.2f} GB more, but {place} has {free / 1e9:.2f} GB free: "
                "free disk space, or set HF_HOME to a folder on another disk"
            )

    def _size_on_disk(self, file: RepoSibling) -> int:
        """Bytes of a large file on disk: all, if another commit has the same file, or a part of an earlier download."""
        if file.lfs is None:
            return 0
        paths = (self._blobs / file.lfs.sha256, self._blobs / f"{file.lfs.sha256}.partial")
        return next((path.stat().st_size for path in paths if path.exists()), 0)

    def _fetch_large(self, file: str, size: int, digest: str) -> None:
        """Download a file of known hash to blobs/HASH, where huggingface_hub finds it."""
        blob = self._blobs / digest
        self._blobs.mkdir(parents=True, exist_ok=True)
        partial = self._blobs / f"{digest}.partial"
        if blob.exists():
            self._count(size)
            return
        with partial.open("ab") as target:
            fcntl.flock(target, fcntl.LOCK_EX)  # another process may be downloading the same file
            if blob.exists():
                partial.unlink(missing_ok=True)
                self._count(size)
                return
            offset = target.seek(0, os.SEEK_END)
            self._count(offset)
            http_get(
                hf_hub_url(self._name, file, revision=self._folder.name),
                target,
                resume_size=offset,
                headers=build_hf_headers(),
                expected_size=size,
                tqdm_class=lambda **_: nullcontext(self),  # type: ignore[arg-type]
            )
            target.flush()
            if sha256(partial) != digest:
                partial.unlink()
                raise DownloadFailed(f"{file} of {self._name} arrived corrupted and was deleted: run the command again")
            os.replace(partial, blob)

    def update(self, count: float = 1) -> None:
        """Called by http_get, which uses this object as its progress bar."""
        self._count(int(count))

    def _count(self, size: int) -> None:
        before, self._bytes = self._bytes, self._bytes + size
        for _ in range(self._bytes // MEGABYTE - before // MEGABYTE):
            self._progress.advance()
