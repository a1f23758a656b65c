"""The model repository that the server loads."""

import json
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from videollama_core.engines.bundle import LANGUAGE_ENGINE, LANGUAGE_FOLDER, MANIFEST, REPOSITORY, Bundle
from videollama_core.protocol.contract import LANGUAGE_MODEL


def served_repository(bundle: Bundle, runtime: Path) -> Path:
    """Return the bundle's repository, or a copy if a backend needs absolute paths in its config.

    The bundle itself is not changed: it may be moved, or be read-only.

    Args:
        runtime: folder of this run; the copy is made in it, beside links to the rest of the bundle, where stages expect it.
    """
    root = bundle.root.resolve()
    if not bundle.language_engine.is_backend:
        return root / REPOSITORY
    copy = runtime / "bundle"
    copy.mkdir()
    for path in root.iterdir():
        if path.name not in (REPOSITORY, MANIFEST):
            (copy / path.name).symlink_to(path)
    shutil.copytree(root / REPOSITORY, copy / REPOSITORY)
    path = copy / REPOSITORY / LANGUAGE_MODEL.name / "config.pbtxt"
    config = text_format.Parse(path.read_text("utf-8"), ModelConfig())
    config.parameters["gpt_model_path"].string_value = str(root / LANGUAGE_ENGINE)
    config.parameters["tokenizer_dir"].string_value = str(root / LANGUAGE_FOLDER)
    path.write_text(text_format.MessageToString(config), "utf-8")
    name = path.relative_to(copy).as_posix()
    files = {
        key: entry for key, entry in bundle.manifest["files"].items() if key != name
    }  # the changed config belongs to this run
    (copy / MANIFEST).write_text(json.dumps(bundle.manifest | {"files": files}), "utf-8")
    return copy / REPOSITORY
