"""Checkpoints by their id on the hub: a server on this machine speaks its protocol and has the golden checkpoints."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, save

import hub_server
from conftest import GOLDEN, checkpoint
from hub_server import digest
from videollama_converters import hub_download
from videollama_converters.hub import is_hub_id, locate
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import Bundle
from videollama_core.protocol.errors import (
    AccessDenied,
    CheckpointMismatch,
    DiskFull,
    DownloadFailed,
    HubUnreachable,
    InvalidRequest,
    NotOnHub,
)

ID = "DAMO-NLP-SG/Tiny"
TOWER, BASE = "towers/clip-vit-tiny-patch14-56", "base/mistral-tiny-instruct"  # as the golden configs name them
CHAT, BASE_VARIANT, LORA, AUDIO = "mistral-clip-16f", "mistral-clip-8f-base", "mistral-clip-8f-lora", "av-qwen2-siglip"


@pytest.fixture
def hub():
    with hub_server.running() as server:
        yield server


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """This process asks the server, with an empty cache, from an empty folder."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return hub


def publish(hub: hub_server.Hub, variant: str, **more: bytes) -> hub_server.Repository:
    """A golden variant under ID, with the tower and base model that it names."""
    for folder in [*(GOLDEN / variant).glob("towers/*"), *(GOLDEN / variant).glob("base/*")]:
        hub.add(f"{folder.parent.name}/{folder.name}", folder, README__md=b"# a model card")
    return hub.add(ID, checkpoint(variant), README__md=b"# a model card", **more)


def start_convert(hub: hub_server.Hub, folder: Path, *words: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "videollama_client", "convert", *words, "--out", str(folder / "out")]
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": "hf_secret"}
    settings = os.environ | settings | environment
    return subprocess.Popen(
        command, env=settings, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_convert(hub: hub_server.Hub, folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    process = start_convert(hub, folder, *words, **environment)
    _, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr
    return process.returncode, stderr


def test_a_hub_id_is_converted_as_its_folder_is_and_fetched_once(hub, tmp_path, bundle_of):
    """A Base folder, which needs tower and base model: equal files, then nothing sent again, then no server at all."""
    repository = publish(hub, BASE_VARIANT)
    code, stderr = run_convert(hub, tmp_path, ID)
    assert code == 0, stderr
    found = Bundle.open(tmp_path / "out").manifest
    wanted = Bundle.open(bundle_of(BASE_VARIANT)).manifest
    for name, entry in wanted["files"].items():
        assert name.startswith("model_repository/") or found["files"][name] == entry, name
    assert found["source"] == wanted["source"] and found["name"] == ID
    assert found["origin"] == {
        part: f"{name}@{hub.repositories[name].commit}"
        for part, name in (("checkpoint", ID), ("tower", TOWER), ("base", BASE))
    }
    assert repository.commit in found["origin"]["checkpoint"] and wanted["origin"] == {}
    tokens = {
        (request["host"].split(":")[0], request["token"]) for request in hub.requests if "/cdn/" in request["path"]
    }
    assert tokens == {("localhost", None)}  # the token stays with the hub
    assert any(request["token"] == "Bearer hf_secret" for request in hub.requests)

    before = len(hub.requests)
    code, stderr = run_convert(hub, tmp_path, ID)
    assert code == 0 and hub.fetched(before) == [] and stderr.count("still valid") == 3 + 7
    before = len(hub.requests)
    code, stderr = run_convert(hub, tmp_path, ID, HF_HUB_OFFLINE="1")
    assert code == 0 and len(hub.requests) == before and stderr.count("still valid") == 7
    # Another commit with the same weights makes nothing anew.
    repository.files["README.md"] = b"# another model card"
    code, stderr = run_convert(hub, tmp_path, ID)
    assert code == 0 and stderr.count("still valid") == 3 - 1 + 7
    assert not list(tmp_path.rglob("*.partial"))
    assert Bundle.open(tmp_path / "out").manifest["origin"]["checkpoint"] == f"{ID}@{repository.commit}"


@pytest.mark.parametrize("variant", [CHAT, BASE_VARIANT, LORA, AUDIO])
def test_every_layout_is_found_whole(variant, here):
    publish(here, variant)
    found = locate(ID)
    parts = open_checkpoint(found.checkpoint, found.tower, found.base)
    parts.check()
    wanted = open_checkpoint(checkpoint(variant))
    assert parts.config == wanted.config and sorted(parts.names()) == sorted(wanted.names())
    assert parts.folders.layout == wanted.folders.layout and "README.md" not in here.fetched()


def test_only_the_needed_files_are_fetched(here):
    """One format of the weights, no other framework's, no leftovers of training, nothing in subfolders."""
    extra = ("pytorch_model.bin", "tf_model.h5", "mm_projector.bin", "consolidated.safetensors", "trainer_state.json")
    repository = publish(here, CHAT)
    repository.files |= dict.fromkeys((*extra, "checkpoint-100/model.safetensors"), b"not needed")
    found = locate(ID)
    files = {path.name for path in checkpoint(CHAT).iterdir()}
    assert {path.name for path in found.checkpoint.iterdir()} == files
    # The weights hold the tower; of a tower that is in no table here, its two configs are needed.
    assert {path.name for path in found.tower.iterdir()} == {"config.json", "preprocessor_config.json"}
    assert "model.safetensors" not in here.fetched() and len(here.fetched()) == len(files) + 2


def test_pickles_are_fetched_where_nothing_else_is(here):
    repository = publish(here, LORA)
    assert {"adapter_model.bin", "non_lora_trainables.bin"} <= set(repository.files)
    repository.files["adapter_model.safetensors"] = b"preferred"
    assert not (locate(ID).checkpoint / "adapter_model.bin").exists()
    del repository.files["adapter_model.safetensors"]
    assert (locate(ID).checkpoint / "adapter_model.bin").exists()


def test_a_path_that_exists_always_wins(here, tmp_path):
    publish(here, BASE_VARIANT)
    shutil.copytree(checkpoint(BASE_VARIANT), tmp_path / ID)
    found = locate(ID)
    assert found.checkpoint == Path(ID) and found.origin == {} and here.requests == []
    with pytest.raises(CheckpointMismatch, match="--base"):  # what the config of a folder names is not downloaded
        open_checkpoint(found.checkpoint, GOLDEN / BASE_VARIANT / TOWER)
    found = locate(ID, tower=TOWER, base=BASE)  # unless it is named
    assert set(found.origin) == {"tower", "base"}
    open_checkpoint(found.checkpoint, found.tower, found.base).check()


@pytest.mark.parametrize(
    "name", ["nowhere", "./a/b", "/a/b", "../a", "a/b/c", "a/b/", "a b/c", "a--b/c", "", "a/b.git"]
)
def test_other_words_are_paths(name, here):
    assert not is_hub_id(name)
    assert locate(name).checkpoint == Path(name) and here.requests == []


def test_a_folder_near_the_command_stands_for_what_the_config_names(here, tmp_path):
    publish(here, BASE_VARIANT)
    shutil.copytree(GOLDEN / BASE_VARIANT / TOWER, tmp_path / TOWER)
    found = locate(ID)
    assert found.tower is None and set(found.origin) == {"checkpoint", "base"}
    open_checkpoint(found.checkpoint, found.tower, found.base).check()


def test_a_revision_is_taken_and_its_commit_told(here):
    publish(here, BASE_VARIANT)
    here.tags["v1.0"] = ID
    commit = here.repositories[ID].commit
    assert locate(ID, revision="v1.0").origin["checkpoint"] == f"{ID}@{commit}"
    assert locate(ID, revision=commit).checkpoint.name == commit
    with pytest.raises(NotOnHub, match="no revision 'v9'"):
        locate(ID, revision="v9")
    with pytest.raises(InvalidRequest, match="--revision v1.0 is of a repository of the hub, but ./here is a path"):
        locate("./here", revision="v1.0")


def refused(status: int, code: str = ""):
    return lambda hub: setattr(hub.repositories[ID], "refusal", (status, code))


def without(*names: str):
    return lambda hub: [hub.repositories[ID].files.pop(name) for name in names]


REFUSALS = {
    "gated, not logged in": (refused(401, "GatedRepo"), AccessDenied, "is gated: ask for access at http.*HF_TOKEN"),
    "gated, not allowed": (refused(403, "GatedRepo"), AccessDenied, "is gated"),
    "a hub that is out of order": (refused(501), HubUnreachable, "the hub answers 501 for DAMO-NLP-SG/Tiny"),
    "forbidden": (refused(403), AccessDenied, r"refuses DAMO-NLP-SG/Tiny \(403\)"),
    "missing": (lambda hub: hub.repositories.pop(ID), NotOnHub, "is no folder here, and the hub has no such repository"),
    "no config": (without("config.json"), NotOnHub, "has no config.json: it is not a checkpoint"),
    "lost shard": (without("model-00002-of-00003.safetensors"), NotOnHub, "lacks model-00002-of-00003.safetensors, which"),
    "no weights": (
        without("model.safetensors.index.json", *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))),
        NotOnHub,
        "has no weights: wanted model.safetensors or pytorch_model.bin",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_said(case, here):
    change, kind, reason = REFUSALS[case]
    publish(here, CHAT)
    change(here)
    with pytest.raises(kind, match=reason):
        locate(ID)


def test_a_missing_base_model_is_named(here):
    publish(here, BASE_VARIANT)
    del here.repositories[BASE]
    with pytest.raises(NotOnHub, match=BASE):
        locate(ID)


def test_without_a_connection_the_cache_must_have_it(here, monkeypatch):
    publish(here, CHAT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match=r"is not in the cache \(.*HF_HUB_OFFLINE is set"):
        locate(ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubUnreachable, match="only the cache was to be looked at"):
        locate(ID, download=False)
    found = locate(ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(ID) == found
    (found.checkpoint / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(HubUnreachable, match="in part only.*HF_HUB_OFFLINE is set.*run it again with a connection"):
        locate(ID)


def test_a_disk_that_is_too_small_is_said_before(here, monkeypatch):
    publish(here, CHAT)
    size = sum(map(len, here.repositories[ID].files.values()))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda path: usage._replace(free=size // 2))
    with pytest.raises(DiskFull, match=r"takes 0\.00 GB more, but .* has 0\.00 GB free: .*HF_HOME"):
        locate(ID)
    assert not [name for name in here.fetched() if name.endswith(".safetensors")]


def test_what_is_there_needs_no_room(here, monkeypatch):
    """Another commit with the same weights fits on a full disk."""
    repository = publish(here, CHAT)
    locate(ID)
    repository.files["README.md"] = b"# another model card"
    usage, before = shutil.disk_usage("/"), len(here.requests)
    monkeypatch.setattr(hub_download.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    assert locate(ID).checkpoint.name == repository.commit and here.fetched(before) == []


def test_an_index_that_is_none_is_said(here):
    publish(here, CHAT).files["model.safetensors.index.json"] = b'{"weight_map": []}'
    with pytest.raises(CheckpointMismatch, match="has no weight_map"):
        locate(ID)


def weights_of(hub: hub_server.Hub) -> bytes:
    return hub.repositories[ID].files["model.safetensors"]


def test_a_broken_connection_goes_on_in_the_middle(here, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at a time: 10 MiB
    publish(here, AUDIO)
    data = weights_of(here)
    here.cut[digest(data)] = len(data) // 3
    found = locate(ID)
    assert (found.checkpoint / "model.safetensors").read_bytes() == data
    assert here.ranges() == [f"bytes={len(data) // 3 // 1000 * 1000}-"]


def test_a_damaged_file_is_not_kept(here):
    publish(here, AUDIO)
    here.spoiled.add(digest(weights_of(here)))
    with pytest.raises(DownloadFailed, match=r"model\.safetensors of .* arrived damaged and was deleted"):
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
        assert "vl2: Cancelled: stopped with 0.01 of 0.02 GB" in stderr and "goes on from there" in stderr
    size = partial.stat().st_size
    assert 0 < size < len(data)
    before = len(here.requests)
    found = locate(ID)
    assert (found.tower / "model.safetensors").read_bytes() == data and not partial.exists()
    assert here.ranges() == [f"bytes={size}-"] and here.fetched(before) == ["model.safetensors"]
    open_checkpoint(found.checkpoint, found.tower, found.base).check()


def test_errors_of_the_command_are_one_line(hub, tmp_path):
    publish(hub, CHAT)
    code, stderr = run_convert(hub, tmp_path, "nobody/nothing")
    assert code == 1 and "vl2: NotOnHub: nobody/nothing is no folder here" in stderr
    code, stderr = run_convert(hub, tmp_path, ID, HF_HUB_OFFLINE="1")
    assert code == 3 and "vl2: HubUnreachable" in stderr and "HF_HUB_OFFLINE is set" in stderr
    code, stderr = run_convert(hub, tmp_path, "./nobody/nothing")
    assert code == 1 and "CheckpointMismatch: nobody/nothing is not a folder" in stderr
