"""Checkpoints named by their id on the Hugging Face hub, fetched into its cache when the user names one.

huggingface_hub talks to the hub; HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are its settings.
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

# The files of a part beside its weights.
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
    """The needed files of a repository, as a folder of the hub's cache that is named by its commit.

    Args:
        part: checkpoint, tower or base.
        weights: False fetches its configs alone.
        download: False takes only what is in the cache.
    Raises: DownloadFailed and its kinds, Cancelled.
    """
    with _translated(name, revision):
        hub, listing = HfApi(), None
        reason: Exception = OfflineModeIsEnabled()
        # The commit that the cache remembers, where the hub cannot be asked.
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
    """Of a repository's files those that a conversion reads, weights last, in one format.

    Args:
        read: brings a file of the repository to this machine; an index names the shards.
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
        raise NotOnHub(f"{name} on the hub is a repository of adapters, but has neither {' nor '.join(ADAPTER_FILES)}")
    for file in WEIGHT_FILES:
        index = f"{file}.index.json"
        if index in names:
            weight_map = read_json(read(index)).get("weight_map")
            shards = sorted({str(shard) for shard in weight_map.values()}) if isinstance(weight_map, dict) else []
            lost = [shard for shard in shards if shard not in names]
            if lost:
                raise NotOnHub(f"{name} on the hub lacks {lost[0]}, which its {index} names")
            return [index, *shards]
        if file in names:
            return [file]
    raise NotOnHub(f"{name} on the hub has no weights: wanted {' or '.join(WEIGHT_FILES)}, whole or in shards")


def _check_cached(name: str, folder: Path, part: str, weights: bool, reason: Exception) -> None:
    """Raises: HubUnreachable unless the cache has all; weights come last, so what is missing is one of them."""
    names = {path.name for path in folder.iterdir()}
    try:
        needed = needed_files(name, names, part, weights, lambda file: folder / file)
    except NotOnHub as error:
        raise HubUnreachable(
            f"the cache ({folder}) has {name} in part only, and the hub was not asked ({_in_words(reason)}): "
            "run it again with a connection"
        ) from error
    assert all(file in names for file in needed)


@contextmanager
def _translated(name: str, revision: str | None) -> Iterator[None]:
    """huggingface_hub's errors as ours."""
    try:
        yield
    except (EntryNotFoundError, HTTPError, OfflineModeIsEnabled, RevisionResolutionError) as error:
        cause = error.__cause__
        raise _as_ours(cause if isinstance(cause, HfHubHTTPError) else error, name, revision) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFull(
            f"the disk of {constants.HF_HUB_CACHE} is full: make room, or name a folder of another disk with HF_HOME"
        ) from error


def _as_ours(error: BaseException, name: str, revision: str | None) -> DownloadFailed:
    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, GatedRepoError):
        return AccessDenied(
            f"{name} is gated: ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return NotOnHub(f"{name} on the hub has no revision {revision!r}; see {page}/commits/main")
    if isinstance(error, RepositoryNotFoundError):
        return NotOnHub(
            f"{name} is no folder here, and the hub has no such repository ({page}), or a private one: "
            "check the name, or log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, (LocalEntryNotFoundError, RevisionResolutionError)):
        return HubUnreachable(
            f"{name} is no folder here, is not in the cache ({constants.HF_HUB_CACHE}), and the hub did not answer: "
            f"{_in_words(error.__cause__ or error)}"
        )
    if isinstance(error, EntryNotFoundError):
        return NotOnHub(f"{name} on the hub has no config.json: it is not a checkpoint")
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        if code in (401, 403):
            return AccessDenied(
                f"the hub refuses {name} ({code}): check HF_TOKEN or `hf auth login`, and its access at {page}"
            )
        return HubUnreachable(f"the hub answers {code} for {name} ({page}): try again later")
    return HubUnreachable(f"{name} cannot be fetched: {_in_words(error)}")


def _in_words(reason: BaseException) -> str:
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(reason, (OfflineModeIsEnabled, LocalEntryNotFoundError, RevisionResolutionError)):
        return "only the cache was to be looked at"
    return f"no connection to {constants.ENDPOINT} ({reason})"
