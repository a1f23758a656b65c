"""Downloads a checkpoint, named by its Hugging Face hub id, into the hub's cache.

huggingface_hub talks to the hub, and is configured by HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

import errno
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from videollama_converters.hub.download import Download
from videollama_converters.steps.progress import Progress, SilentProgress
from videollama_core.checkpoint.files import read_json
from videollama_core.checkpoint.layout import CONNECTOR_FILE, NON_LORA_FILE, layout_of
from videollama_core.checkpoint.lora import ADAPTER_FILES
from videollama_core.checkpoint.shards import WEIGHT_FILES
from videollama_core.checkpoint.tokenizer_files import TOKENIZER_FILES
from videollama_core.protocol.errors import (
    AccessDenied,
    DiskFull,
    DownloadFailed,
    HubUnreachable,
    NotOnHub,
)

# The files of each part, apart from its weights.
SMALL_FILES = {
    "checkpoint": ("config.json", "adapter_config.json", *TOKENIZER_FILES),
    "base": ("config.json", *TOKENIZER_FILES),
    "tower": ("config.json", "preprocessor_config.json"),
}


def fetch(
    name: str,
    part: str,
    revision: str | None = None,
    weights: bool = True,
    progress: Progress = SilentProgress(),
    download: bool = True,
) -> Path:
    """Download the files of a repository that a conversion needs.

    Args:
        part: checkpoint, tower or base.
        weights: False downloads only configs and tokenizer files.
        download: False uses only the cache.
    Returns: a folder of the hub's cache, named by its commit.
    Raises: DownloadFailed and its subclasses, Cancelled.
    """
    with _translated(name, revision):
        hub, listing = HfApi(), None
        reason: Exception = OfflineModeIsEnabled()
        # Falls back to the commit in the cache if the hub cannot be reached.
        commit = hub.resolve_revision(name, revision=revision, local_files_only=not download).resolved
        try:
            if download:
                timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
                listing = hub.model_info(name, revision=commit, files_metadata=True, timeout=timeout).siblings
        except HfHubHTTPError:
            raise
        except (OfflineModeIsEnabled, HTTPError) as error:
            reason = error
        config = hf_hub_download(name, "config.json", revision=commit, local_files_only=listing is None)
        folder = Path(config).parent
        if listing is None:
            _check_cached(name, folder, part, weights, reason)
            return folder
        files = {file.rfilename: file for file in listing}
        read = lambda file: Path(hf_hub_download(name, file, revision=folder.name))  # noqa: E731
        needed = needed_files(name, files, part, weights, read)
        Download(name, folder, [files[file] for file in needed], progress).run()
    return folder


def needed_files(name: str, names: Collection[str], part: str, weights: bool, read: Callable[[str], Path]) -> list[str]:
    """Names of the files of a repository that a conversion reads: weights last, and in one format only.

    Args:
        read: downloads one file; used for the index, which names the shards.
    Raises: NotOnHub.
    """
    small = [file for file in SMALL_FILES[part] if file in names]
    return small + (_weight_files(name, names, read) if weights else [])


def _weight_files(name: str, names: Collection[str], read: Callable[[str], Path]) -> list[str]:
    layout = layout_of(names)
    if layout == "base":
        return [CONNECTOR_FILE]
    if layout == "lora":
        adapters = [file for file in ADAPTER_FILES if file in names][:1]
        if adapters:
            return [*adapters, *(file for file in (NON_LORA_FILE,) if file in names)]
        raise NotOnHub(f"{name} on the hub is an adapter repository, but has neither {' nor '.join(ADAPTER_FILES)}")
    for file in WEIGHT_FILES:
        index = f"{file}.index.json"
        if index in names:
            weight_map = read_json(read(index)).get("weight_map")
            shards = sorted({str(shard) for shard in weight_map.values()}) if isinstance(weight_map, dict) else []
            missing = [shard for shard in shards if shard not in names]
            if missing:
                raise NotOnHub(f"{name} on the hub lacks {missing[0]}, which its {index} names")
            return [index, *shards]
        if file in names:
            return [file]
    raise NotOnHub(f"{name} on the hub has no weights: expected {' or '.join(WEIGHT_FILES)}, whole or in shards")


def _check_cached(name: str, folder: Path, part: str, weights: bool, reason: Exception) -> None:
    """Raises: HubUnreachable unless the cache is complete; weights are downloaded last, so a missing file is one of them."""
    names = {path.name for path in folder.iterdir()}
    try:
        needed = needed_files(name, names, part, weights, lambda file: folder / file)
    except NotOnHub as error:
        raise HubUnreachable(
            f"the cache ({folder}) holds only a part of {name}, and the hub was not queried ({_in_words(reason)}): "
            "run the command again with a connection"
        ) from error
    assert all(file in names for file in needed)


@contextmanager
def _translated(name: str, revision: str | None) -> Iterator[None]:
    """Translate huggingface_hub's errors into ours."""
    try:
        yield
    except (EntryNotFoundError, HTTPError, OfflineModeIsEnabled, RevisionResolutionError) as error:
        cause = error.__cause__
        raise _as_ours(cause if isinstance(cause, HfHubHTTPError) else error, name, revision) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFull(
            f"the disk of {constants.HF_HUB_CACHE} is full: free disk space, or set HF_HOME to a folder on another disk"
        ) from error


def _as_ours(error: BaseException, name: str, revision: str | None) -> DownloadFailed:
    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, GatedRepoError):
        return AccessDenied(
            f"{name} is gated: request access at {page}, then log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return NotOnHub(f"{name} on the hub has no revision {revision!r}; see {page}/commits/main")
    if isinstance(error, RepositoryNotFoundError):
        return NotOnHub(
            f"{name} is not a local folder, and the repository {page} does not exist or is private: "
            "check the name, or log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, (LocalEntryNotFoundError, RevisionResolutionError)):
        return HubUnreachable(
            f"{name} is not a local folder, is not in the cache ({constants.HF_HUB_CACHE}), and the hub did not answer: "
            f"{_in_words(error.__cause__ or error)}"
        )
    if isinstance(error, EntryNotFoundError):
        return NotOnHub(f"{name} on the hub has no config.json: it is not a checkpoint")
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        if code in (401, 403):
            return AccessDenied(
                f"the hub denies access to {name} ({code}): check HF_TOKEN or `hf auth login`, and your access at {page}"
            )
        return HubUnreachable(f"the hub answered {code} for {name} ({page}): try again later")
    return HubUnreachable(f"{name} cannot be downloaded: {_in_words(error)}")


def _in_words(reason: BaseException) -> str:
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(reason, (OfflineModeIsEnabled, LocalEntryNotFoundError, RevisionResolutionError)):
        return "only the cache was to be used"
    return f"no connection to {constants.ENDPOINT} ({reason})"
