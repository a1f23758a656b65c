"""Checkpoints by their id on the hub: a server on this machine speaks its protocol and has the golden checkpoints."""

import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from conftest import GOLDEN, checkpoint
from hub_server import AUDIO, BASE, BASE_VARIANT, CHAT, ID, LORA, TOWER, publish, run_convert
from videollama_converters.locate import is_hub_id, locate
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import Bundle
from videollama_core.protocol.errors import (
    AccessDenied,
    CheckpointMismatch,
    HubUnreachable,
    InvalidRequest,
    NotOnHub,
)


def test_a_hub_id_is_converted_as_its_folder_is_and_fetched_once(hub, tmp_path, bundle_of):
    """A Base folder, which needs tower and base model: equal files, then nothing sent again, then no server at all."""
    repository = publish(hub, BASE_VARIANT)
    code, stderr = run_convert(hub, tmp_path, ID)
    assert code == 0, stderr
    manifest = Bundle.open(tmp_path / "out").manifest
    wanted = Bundle.open(bundle_of(BASE_VARIANT)).manifest
    for name, entry in wanted["files"].items():
        assert name.startswith("model_repository/") or manifest["files"][name] == entry, name
    assert manifest["source"] == wanted["source"] and manifest["name"] == ID
    assert manifest["origin"] == {
        part: f"{name}@{hub.repositories[name].commit}"
        for part, name in (("checkpoint", ID), ("tower", TOWER), ("base", BASE))
    }
    assert repository.commit in manifest["origin"]["checkpoint"] and wanted["origin"] == {}
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


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--engine", "tensorrt", "--kv-dtype", "int8"), "would not start"),
        (("--max-seq-len", "1000000"), "supports 32768 positions"),
        (("--engine", "tensorrt"), "the package tensorrt is missing|no GPU can be used"),
    ],
)
def test_what_the_config_shows_is_refused_before_the_weights_are_fetched(words, reason, hub, tmp_path):
    """15 GB came first; NVIDIA's parser is asked then, too, and the machine last."""
    publish(hub, CHAT)
    code, stderr = run_convert(hub, tmp_path, ID, "--tower", str(GOLDEN / CHAT / TOWER), *words)
    assert code in (1, 2) and re.search(reason, stderr), stderr
    assert not [name for name in hub.fetched() if name.endswith((".safetensors", ".bin"))]


@pytest.mark.parametrize("variant", [CHAT, BASE_VARIANT, LORA, AUDIO])
def test_every_layout_is_located_completely(variant, here):
    publish(here, variant)
    folders = locate(ID)
    parts = open_checkpoint(folders.checkpoint, folders.tower, folders.base)
    parts.check()
    wanted = open_checkpoint(checkpoint(variant))
    assert parts.config == wanted.config and sorted(parts.names()) == sorted(wanted.names())
    assert parts.folders.layout == wanted.folders.layout and "README.md" not in here.fetched()


def test_only_the_needed_files_are_fetched(here):
    """One format of the weights, no other framework's, no leftovers of training, nothing in subfolders."""
    extra = ("pytorch_model.bin", "tf_model.h5", "mm_projector.bin", "consolidated.safetensors", "trainer_state.json")
    repository = publish(here, CHAT)
    repository.files |= dict.fromkeys((*extra, "checkpoint-100/model.safetensors"), b"not needed")
    folders = locate(ID)
    files = {path.name for path in checkpoint(CHAT).iterdir()}
    assert {path.name for path in folders.checkpoint.iterdir()} == files
    # The weights hold the tower; of a tower that is in no table here, its two configs are needed.
    assert {path.name for path in folders.tower.iterdir()} == {"config.json", "preprocessor_config.json"}
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
    folders = locate(ID)
    assert folders.checkpoint == Path(ID) and folders.origin == {} and here.requests == []
    with pytest.raises(CheckpointMismatch, match="--base"):  # what the config of a folder names is not downloaded
        open_checkpoint(folders.checkpoint, GOLDEN / BASE_VARIANT / TOWER)
    folders = locate(ID, tower=TOWER, base=BASE)  # unless it is named
    assert set(folders.origin) == {"tower", "base"}
    open_checkpoint(folders.checkpoint, folders.tower, folders.base).check()


@pytest.mark.parametrize(
    "name", ["nowhere", "./a/b", "/a/b", "../a", "a/b/c", "a/b/", "a b/c", "a--b/c", "", "a/b.git"]
)
def test_other_words_are_paths(name, here):
    assert not is_hub_id(name)
    assert locate(name).checkpoint == Path(name) and here.requests == []


def test_a_folder_near_the_command_stands_for_what_the_config_names(here, tmp_path):
    publish(here, BASE_VARIANT)
    shutil.copytree(GOLDEN / BASE_VARIANT / TOWER, tmp_path / TOWER)
    folders = locate(ID)
    assert folders.tower is None and set(folders.origin) == {"checkpoint", "base"}
    open_checkpoint(folders.checkpoint, folders.tower, folders.base).check()


def test_a_revision_is_taken_and_its_commit_told(here):
    publish(here, BASE_VARIANT)
    here.tags["v1.0"] = ID
    commit = here.repositories[ID].commit
    assert locate(ID, revision="v1.0").origin["checkpoint"] == f"{ID}@{commit}"
    assert locate(ID, revision=commit).checkpoint.name == commit
    with pytest.raises(NotOnHub, match="no revision 'v9'"):
        locate(ID, revision="v9")
    with pytest.raises(InvalidRequest, match="--revision v1.0 needs the id of a hub repository, but ./here is a path"):
        locate("./here", revision="v1.0")


def refused(status: int, code: str = ""):
    return lambda hub: setattr(hub.repositories[ID], "refusal", (status, code))


def without(*names: str):
    return lambda hub: [hub.repositories[ID].files.pop(name) for name in names]


REFUSALS = {
    "gated, not logged in": (refused(401, "GatedRepo"), AccessDenied, "is gated: request access at http.*HF_TOKEN"),
    "gated, not allowed": (refused(403, "GatedRepo"), AccessDenied, "is gated"),
    "a hub that is out of order": (refused(501), HubUnreachable, "the hub answered 501 for DAMO-NLP-SG/Tiny"),
    "forbidden": (refused(403), AccessDenied, r"denies access to DAMO-NLP-SG/Tiny \(403\)"),
    "missing": (lambda hub: hub.repositories.pop(ID), NotOnHub, "is not a local folder, and the repository .*Tiny does not exist or is private"),
    "no config": (without("config.json"), NotOnHub, "has no config.json: it is not a checkpoint"),
    "lost shard": (without("model-00002-of-00003.safetensors"), NotOnHub, "lacks model-00002-of-00003.safetensors, which"),
    "no weights": (
        without("model.safetensors.index.json", *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))),
        NotOnHub,
        "has no weights: expected model.safetensors or pytorch_model.bin",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_the_hubs_refusals_are_reported(case, here):
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
    with pytest.raises(HubUnreachable, match="only the cache was to be used"):
        locate(ID, download=False)
    folders = locate(ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(ID) == folders
    (folders.checkpoint / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(
        HubUnreachable, match="only a part of.*HF_HUB_OFFLINE is set.*run the command again with a connection"
    ):
        locate(ID)


def test_an_invalid_index_is_reported(here):
    publish(here, CHAT).files["model.safetensors.index.json"] = b'{"weight_map": []}'
    with pytest.raises(CheckpointMismatch, match="has no weight_map"):
        locate(ID)


def test_errors_of_the_command_are_one_line(hub, tmp_path):
    publish(hub, CHAT)
    code, stderr = run_convert(hub, tmp_path, "nobody/nothing")
    assert code == 1 and "vl2: NotOnHub: nobody/nothing is not a local folder" in stderr
    code, stderr = run_convert(hub, tmp_path, ID, HF_HUB_OFFLINE="1")
    assert code == 3 and "vl2: HubUnreachable" in stderr and "HF_HUB_OFFLINE is set" in stderr
    code, stderr = run_convert(hub, tmp_path, "./nobody/nothing")
    assert code == 1 and "CheckpointMismatch: nobody/nothing is not a folder" in stderr
