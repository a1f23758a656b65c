"""Downloads from the hub that stop, break, arrive damaged, or do not fit on the disk."""

import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, save

from hub_server import AUDIO, BASE_VARIANT, CHAT, ID, TOWER, Hub, digest, publish, start_convert
from videollama_converters.hub import download
from videollama_converters.locate import locate
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.protocol.errors import DiskFull, DownloadFailed


def test_a_disk_that_is_too_small_is_said_before(here, monkeypatch):
    publish(here, CHAT)
    size = sum(map(len, here.repositories[ID].files.values()))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=size // 2))
    with pytest.raises(DiskFull, match=r"needs 0\.00 GB more, but .* has 0\.00 GB free: .*HF_HOME"):
        locate(ID)
    assert not [name for name in here.fetched() if name.endswith(".safetensors")]


def test_what_is_there_needs_no_room(here, monkeypatch):
    """Another commit with the same weights fits on a full disk."""
    repository = publish(here, CHAT)
    locate(ID)
    repository.files["README.md"] = b"# another model card"
    usage, before = shutil.disk_usage("/"), len(here.requests)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    assert locate(ID).checkpoint.name == repository.commit and here.fetched(before) == []


def weights_of(hub: Hub) -> bytes:
    return hub.repositories[ID].files["model.safetensors"]


def test_a_broken_connection_goes_on_in_the_middle(here, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at a time: 10 MiB
    publish(here, AUDIO)
    data = weights_of(here)
    here.cut[digest(data)] = len(data) // 3
    folders = locate(ID)
    assert (folders.checkpoint / "model.safetensors").read_bytes() == data
    assert here.ranges() == [f"bytes={len(data) // 3 // 1000 * 1000}-"]


def test_a_damaged_file_is_not_kept(here):
    publish(here, AUDIO)
    here.spoiled.add(digest(weights_of(here)))
    with pytest.raises(DownloadFailed, match=r"model\.safetensors of .* arrived corrupted and was deleted"):
        locate(ID)
    here.spoiled.clear()
    assert (locate(ID).checkpoint / "model.safetensors").read_bytes() == weights_of(here)
    assert here.ranges() == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_download_goes_on_where_it_stopped(end, here, tmp_path):
    """Stopped in the middle of a file; the next run asks for the rest of it alone."""
    publish(here, BASE_VARIANT)
    files = here.repositories[TOWER].files
    text_half = {"text_model.embeddings": torch.arange(6_000_000, dtype=torch.float32)}  # of 24 MB, as towers have
    files["model.safetensors"] = data = save(load(files["model.safetensors"]) | text_half)
    here.hold[digest(data)] = 15_000_000
    process = start_convert(here, tmp_path, ID, HF_HUB_CACHE=constants.HF_HUB_CACHE)
    partial = Path(constants.HF_HUB_CACHE, f"models--{TOWER.replace('/', '--')}", "blobs", f"{digest(data)}.partial")
    while not (partial.exists() and partial.stat().st_size):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(end)
    _, stderr = process.communicate(timeout=60)
    if end == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in stderr
        assert "vl2: Cancelled: stopped with 0.01 of 0.02 GB" in stderr and "run the same command again" in stderr
    size = partial.stat().st_size
    assert 0 < size < len(data)
    before = len(here.requests)
    folders = locate(ID)
    assert (folders.tower / "model.safetensors").read_bytes() == data and not partial.exists()
    assert here.ranges() == [f"bytes={size}-"] and here.fetched(before) == ["model.safetensors"]
    open_checkpoint(folders.checkpoint, folders.tower, folders.base).check()
