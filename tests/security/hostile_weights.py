"""Weight files and adapters of hostile checkpoints."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from checkpoints import edit_json, edit_tensors
from security.hostile_checkpoints import ADAPTERS, Hostile, write

NORM = "model.norm.weight"


def header(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """The list of tensors of model.safetensors, changed; its bytes as they are."""

    def changed(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        content = json.loads(data[8 : 8 + size])
        made = change(content)
        text = made if isinstance(made, bytes) else json.dumps(content).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    return changed


def first(**changes: Any) -> Callable[[dict], None]:
    return lambda content: content["model.norm.weight"].update(changes)


def pickled(change: Callable[[dict], Any] = lambda tensors: None) -> Callable[[Path], None]:
    """The weights as pytorch_model.bin; `change` edits them, or returns what is stored instead."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        made = change(tensors)
        torch.save(tensors if made is None else made, folder / "pytorch_model.bin")

    return changed


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def compressed(folder: Path) -> None:
    pickled()(folder)
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def adapters(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = torch.load(folder / "adapter_model.bin", weights_only=True)
        change(tensors)
        torch.save(tensors, folder / "adapter_model.bin")

    return changed


def adapter_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "adapter_config.json", **changes)


def spoiled(name: str, value: float) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors[name].fill_(value))


def sparse_header(folder: Path) -> None:
    """100 MB of header, stored as a sparse file."""
    with (folder / "model.safetensors").open("wb") as file:
        file.write((100 * 10**6).to_bytes(8, "little"))
        file.truncate(100 * 10**6 + 8)


def typed(dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({NORM: tensors[NORM].to(dtype)}))


def cut(size: int) -> Callable[[Path], None]:
    """The weights' first bytes."""
    return lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:size])


def expanded(tensors: dict) -> None:
    """16 GB, of which 4 bytes are stored."""
    tensors[NORM] = torch.zeros(1).expand(2**32)


def twice(content: dict) -> bytes:
    text = json.dumps(content)
    return (text[:-1] + "," + json.dumps({NORM: content[NORM]})[1:]).encode()


def overlapping(content: dict) -> None:
    names = [name for name in content if name != "__metadata__"]
    content[names[0]]["data_offsets"] = content[names[1]]["data_offsets"]


def plain_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/version", "3")


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"
SIZES = (
    Hostile("safetensors: empty", cut(0), "cannot be read"),
    Hostile("safetensors: 4 bytes", cut(4), "cannot be read"),
    Hostile("safetensors: cut in half", cut(500_000), "cannot be read"),
    Hostile(
        "safetensors: list of 2^40 bytes", write("model.safetensors", (2**40).to_bytes(8, "little")), "header_bytes"
    ),
    Hostile("safetensors: list of 100 MB", sparse_header, "header_bytes"),
    Hostile("safetensors: list nested 100,000 deep", header(lambda content: b"[" * 100_000), "damaged"),
    Hostile("safetensors: a name twice", header(twice), "occurs twice"),
    Hostile("safetensors: bytes beyond the file", header(first(data_offsets=[0, 10**12])), "cannot be read"),
    Hostile("safetensors: negative offsets", header(first(data_offsets=[-8, 120])), "cannot be read"),
    Hostile("safetensors: tensors overlap", header(overlapping), "cannot be read"),
    Hostile("safetensors: shape of 2^80 elements", header(first(shape=[2**40, 2**40])), "cannot be read"),
    Hostile("safetensors: another type", header(first(dtype="F64")), "cannot be read"),
    Hostile("safetensors: unknown type", header(first(dtype="X9")), "cannot be read"),
)
CONTENTS = (
    Hostile("weights of whole numbers", typed(torch.int32), "floating point"),
    Hostile("weights in float8", typed(torch.float8_e4m3fn), "floating point"),
    Hostile("complex weights", typed(torch.complex64), "floating point|cannot be read"),
    Hostile("weights hold NaN", spoiled(NORM, float("nan")), "not finite"),
    Hostile("weights hold infinity", spoiled(NORM, float("inf")), "not finite"),
    Hostile("a tensor's name has 1 MB", header(lambda c: c.update({"x" * 10**6: c.pop(NORM)})), "lacks 1 tensors"),
    Hostile("a tensor's name has line ends", header(lambda c: c.update({"a\nb": c[NORM]})), "cannot be read|uses"),
)
PICKLES = (
    Hostile(".bin: no zip", plain_pickle, "zip"),
    Hostile(".bin: runs code", pickled(lambda t: {NORM: Calls(exec, "open('/tmp/ran', 'w')")}), "it names"),
    Hostile(".bin: makes 16 GB", pickled(lambda t: {NORM: Calls(bytearray, 2**34)}), "it names"),
    Hostile(".bin: makes a tensor of 16 GB", pickled(lambda t: {NORM: Calls(torch.Tensor, 2**32)}), "it names"),
    Hostile(".bin: 4 bytes expand to 16 GB", pickled(expanded), "only 4 bytes are stored"),
    Hostile(".bin: compressed", compressed, "compressed"),
    Hostile(".bin: sparse tensor", pickled(lambda t: t.update({NORM: torch.ones(64).to_sparse()})), "it names"),
    Hostile(".bin: a list", pickled(lambda t: [torch.zeros(1)]), "something other than tensors"),
    Hostile(".bin: dicts in a dict", pickled(lambda t: {"model": t}), "something other than tensors"),
    Hostile(".bin: numbers as names", pickled(lambda t: {1: torch.zeros(1)}), "something other than tensors"),
    Hostile(".bin: no pickle in the zip", emptied, "0 pickles"),
)
LORA = tuple(
    Hostile(f"adapter: {name}", change, reason, ADAPTERS)
    for name, change, reason in (
        ("r is 0", adapter_config(r=0), "with r 0"),
        ("r is text", adapter_config(r="8"), "with r '8'"),
        ("r is 2^31", adapter_config(r=2**31), "with r 2147483648"),
        ("lora_alpha is 1e308", adapter_config(lora_alpha=1e308), "lora_alpha"),
        ("lora_alpha is NaN", adapter_config(lora_alpha=float("nan")), "not JSON"),
        ("another rank than it says", adapter_config(r=4), "has rank 8"),
        ("peft_type is a list", adapter_config(peft_type=["LORA"]), "expected LoRA"),
        ("bias is an object", adapter_config(bias={"a": 1}), "bias is"),
        ("no lora_B", adapters(lambda t: t.pop(f"{Q_PROJ}.lora_B.weight")), "no lora_B"),
        ("no lora_A", adapters(lambda t: t.pop(f"{Q_PROJ}.lora_A.weight")), "no lora_A"),
        (
            "4 bytes expand",
            adapters(lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.zeros(1, 1).expand(8, 2**31)})),
            "only 4",
        ),
        (
            "shapes that do not fit",
            adapters(lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.zeros(8, 5)})),
            "but the weight",
        ),
        (
            "whole numbers",
            adapters(lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.zeros(8, 64).int()})),
            "floating",
        ),
        ("weights it does not have", adapters(lambda t: t.update({"x.weight": torch.zeros(1)})), "not part of LoRA"),
        ("config is no JSON", write("adapter_config.json", "{"), "as JSON"),
        ("base model climbs", lambda f: edit_json(f / "config.json", _name_or_path="../made/base/x"), "--base"),
        ("base model is a number", lambda f: edit_json(f / "config.json", _name_or_path=7), "name of a folder"),
    )
)
WEIGHTS = (*SIZES, *CONTENTS, *PICKLES, *LORA)
