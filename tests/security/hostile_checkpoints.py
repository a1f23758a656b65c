"""Checkpoint folders as an attacker would make them, each out of a golden one.

Here: values of the configs, and files that are none. `hostile_weights.py` and `hostile_prompts.py` have the others.
`python tests/security/hostile_checkpoints.py FOLDER` writes them all.
"""

import json
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoints import copy, edit_json

SINGLE, SHARDED, ADAPTERS = "mistral-clip-8f", "qwen2-clip-8f", "mistral-clip-8f-lora"
OUTSIDE = "outside"  # beside the checkpoint: what it must not reach


@dataclass(frozen=True)
class Hostile:
    name: str
    change: Callable[[Path], Any]  # of the checkpoint's folder
    reason: str  # in the refusal
    variant: str = SINGLE
    row: str = ""  # of the table, where several cases share one

    def make(self, folder: Path) -> Path:
        """The checkpoint's folder, below an empty one."""
        root = folder / "made"
        checkpoint = copy(self.variant, root)
        if self.variant == ADAPTERS:
            checkpoint = root / "lora-checkpoint"
        (folder / OUTSIDE).mkdir()
        (folder / OUTSIDE / "secret").write_text("secret")
        self.change(checkpoint)
        return checkpoint


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def tower(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next((folder.parent / "towers").iterdir()) / "config.json"
        content = json.loads(path.read_text())
        content["vision_config"].update(changes)
        path.write_text(json.dumps(content))

    return change


def pixels(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(next((folder.parent / "towers").iterdir()) / "preprocessor_config.json", **changes)


def write(name: str, data: bytes | str) -> Callable[[Path], None]:
    data = data.encode() if isinstance(data, str) else data
    return lambda folder: (folder / name).write_bytes(data)


def replaced(name: str, put: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Another file type under the file's name."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        put(folder / name)

    return change


def link(name: str, target: str) -> Callable[[Path], None]:
    return replaced(name, lambda path: path.symlink_to(target))


def moved_out(name: str) -> Callable[[Path], None]:
    """The file itself is outside, with a link to it here."""

    def change(folder: Path) -> None:
        target = folder.parents[1] / OUTSIDE / name
        (folder / name).rename(target)
        (folder / name).symlink_to(target)

    return change


def put_device(path: Path) -> None:
    """/dev/full, or a link to it where this user may not create one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))
    except PermissionError:
        path.symlink_to("/dev/full")


def put_socket(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # the address of a socket has at most 107 characters
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{short}/s")
        os.rename(f"{short}/s", path)


def index(**names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        first = next(iter(content["weight_map"]))
        content["weight_map"][first] = names["first"]
        path.write_text(json.dumps(content))

    return change


_BAD = {
    "text": "64",
    "list": [64],
    "object": {"a": 64},
    "true": True,
    "negative": -1,
    "half": 2.5,
    "zero": 0,
    "2^31": 2**31,
    "2^63": 2**63,
    "1e308": 1e308,
    "NaN": float("nan"),
}
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_REQUIRED += ("max_position_embeddings",)
_ALLOWED = {("rope_theta", "half"), ("rope_theta", "2^31"), ("mm_vision_select_layer", "zero")}
_ALLOWED |= {("mm_vision_select_layer", "negative")}
VALUES = tuple(
    Hostile(f"{key}: {name}", config(**{key: value}), f"{key}|not JSON", row=f"config: {key}")
    for key in (*_REQUIRED, "num_key_value_heads", "num_frames", "rms_norm_eps", "rope_theta", "mm_vision_select_layer")
    for name, value in {**_BAD, **({"null": None} if key in _REQUIRED else {})}.items()
    if (key, name) not in _ALLOWED
)
CONFIGS = (
    Hostile("heads that do not share the width", config(num_attention_heads=7, num_key_value_heads=None), "evenly"),
    Hostile("key heads that do not share the heads", config(num_key_value_heads=3), "cannot share"),
    Hostile("head_dim is odd", config(head_dim=15), "head_dim is 15"),
    Hostile("positions that media alone fill", config(max_position_embeddings=20), "media alone takes"),
    Hostile("512 layers that are not there", config(num_hidden_layers=512), "lacks .* tensors"),
    Hostile("tie_word_embeddings is text", config(tie_word_embeddings="false"), "true or false"),
    Hostile("hidden_act is another", config(hidden_act="gelu"), "expected silu"),
    Hostile("rope_scaling", config(rope_scaling={"factor": 8}), "rope_scaling"),
    Hostile("model_type is unknown", config(model_type="llama"), "expected one of"),
    Hostile("model_type is a list", config(model_type=["videollama2"]), "expected one of"),
    Hostile("model_type has 5 MB", config(model_type="x" * 5_000_000), "expected one of"),
    Hostile("mm_projector_type is an object", config(mm_projector_type={}), "mm_projector_type is"),
    Hostile("mm_vision_tower is a list", config(mm_vision_tower=["a"]), "expected the name of a folder"),
    Hostile("mm_vision_tower is a system folder", config(mm_vision_tower="/etc"), "--tower"),
    Hostile("mm_vision_tower climbs", config(mm_vision_tower="../made/towers/x"), "--tower"),
    Hostile("mm_vision_tower holds NUL and a line end", config(mm_vision_tower="a\0b\n"), "name of a folder"),
    Hostile("mm_vision_tower has 100,000 characters", config(mm_vision_tower="x/" * 50_000), "name of a folder"),
    Hostile("num_hidden_layers of the tower: 2^31", tower(num_hidden_layers=2**31), "num_hidden_layers"),
    Hostile("heads of the tower do not share its width", tower(num_attention_heads=7), "evenly"),
    Hostile("patch_size of the tower is 0", tower(patch_size=0), "patch_size"),
    Hostile("patch_size of the tower is the picture's", tower(patch_size=57), "patches per side"),
    Hostile("image_size of the tower is 10^9", tower(image_size=10**9), "image_size"),
    Hostile("hidden_act of the tower is code", tower(hidden_act="__import__('os')"), "hidden_act"),
    Hostile("image_std holds 0", pixels(image_std=[0, 1, 1]), "image_std"),
    Hostile("image_mean has two", pixels(image_mean=[0.5, 0.5]), "image_mean"),
    Hostile("image_mean is text", pixels(image_mean="abc"), "image_mean"),
    Hostile("rescale_factor is 1e308", pixels(rescale_factor=1e308), "rescale_factor"),
    Hostile("config.json is no JSON", write("config.json", "{broken"), "cannot be read as JSON"),
    Hostile("config.json is empty", write("config.json", ""), "cannot be read as JSON"),
    Hostile("config.json is a list", write("config.json", "[]"), "expected a JSON object"),
    Hostile("config.json is nested 100,000 deep", write("config.json", "[" * 100_000), "cannot be read as JSON"),
    Hostile("config.json: an integer of 5,000 digits", write("config.json", '{"a": 1' + "0" * 5000 + "}"), "as JSON"),
    Hostile("config.json is no UTF-8", write("config.json", b'{"a": "\xff"}'), "cannot be read as JSON"),
    Hostile("config.json has 20 MB", write("config.json", b" " * 20_000_000), "json_bytes"),
    Hostile(
        "config.json is 1 TB that is not on the disk", lambda f: os.truncate(f / "config.json", 2**40), "json_bytes"
    ),
    Hostile("config.json is missing", lambda folder: (folder / "config.json").unlink(), "is missing"),
)
FILES = (
    Hostile("config.json is a folder", replaced("config.json", Path.mkdir), "not a regular file"),
    Hostile("config.json is a pipe", replaced("config.json", os.mkfifo), "not a regular file"),
    Hostile("config.json is a socket", replaced("config.json", put_socket), "not a regular file"),
    Hostile("config.json is a device", replaced("config.json", put_device), "not a regular file|leads out"),
    Hostile("config.json is a link to /dev/zero", link("config.json", "/dev/zero"), "leads out of the folder"),
    Hostile("config.json is a link to a file outside", moved_out("config.json"), "leads out of the folder"),
    Hostile("config.json is a link to itself", link("config.json", "config.json"), "leads to no file"),
    Hostile(
        "tokenizer.model is a link to /etc/passwd", link("tokenizer.model", "/etc/passwd"), "leads out of the folder"
    ),
    Hostile("tokenizer.json is a pipe", replaced("tokenizer.json", os.mkfifo), "not a regular file"),
    Hostile("generation_config.json is a broken link", link("generation_config.json", "nowhere"), "leads to no file"),
    Hostile(
        "chat_template.jinja is a link outside", link("chat_template.jinja", f"../../{OUTSIDE}/secret"), "leads out"
    ),
    Hostile("the weights are a link outside", moved_out("model.safetensors"), "leads out of the folder"),
    Hostile("the weights are a pipe", replaced("model.safetensors", os.mkfifo), "not a regular file"),
    Hostile("the weights are a folder", replaced("model.safetensors", Path.mkdir), "not a regular file"),
    Hostile("the index climbs", index(first=f"../../{OUTSIDE}/secret"), "not a weight file of its folder", SHARDED),
    Hostile("the index names an absolute path", index(first="/etc/passwd"), "not a weight file of its folder", SHARDED),
    Hostile("the index names a file in a linked folder", index(first="sub/a.bin"), "not a weight file", SHARDED),
    Hostile("the index names a shard that is not there", index(first="a.safetensors"), "lacks 1 shards", SHARDED),
    Hostile("the index is no map", write("model.safetensors.index.json", '{"weight_map": [1]}'), "no weight_map"),
    Hostile(
        "the index maps to numbers", write("model.safetensors.index.json", '{"weight_map": {"a": 1}}'), "no weight_map"
    ),
    Hostile(
        "a shard is a pipe", replaced("model-00002-of-00003.safetensors", os.mkfifo), "not a regular file", SHARDED
    ),
)


def main() -> None:
    from security.hostile_prompts import LIMITED, PROMPTS
    from security.hostile_weights import WEIGHTS

    for number, case in enumerate((*VALUES, *CONFIGS, *FILES, *WEIGHTS, *PROMPTS, *LIMITED)):
        folder = Path(sys.argv[1]) / f"{number:03d}"
        folder.mkdir(parents=True)
        print(case.make(folder), case.name, sep="\t")


if __name__ == "__main__":
    main()
