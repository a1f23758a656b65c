"""The model repository that the server reads."""

import json
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from videollama_core.engines.bundle import LANGUAGE_ENGINE, LANGUAGE_FOLDER, MANIFEST, REPOSITORY, Bundle
from videollama_core.protocol.contract import LANGUAGE_MODEL


def served_repository(bundle: Bundle, runtime: Path) -> Path:
    """The bundle's own, or a copy where a backend wants absolute paths in its config: a bundle may be moved, and read-only.

    Args:
        runtime: folder of this run; receives the copy, among links to everything else of the bundle, which the stages look for
            around their repository.
    """
    root = bundle.root.resolve()
    if not bundle.language_engine.is_backend:
        return root / REPOSITORY
    around = runtime / "bundle"
    around.mkdir()
    for path in root.iterdir():
        if path.name not in (REPOSITORY, MANIFEST):
            (around / path.name).symlink_to(path)
    shutil.copytree(root / REPOSITORY, around / REPOSITORY)
    path = around / REPOSITORY / LANGUAGE_MODEL.name / "config.pbtxt"
    config = text_format.Parse(path.read_text("utf-8"), ModelConfig())
    config.parameters["gpt_model_path"].string_value = str(root / LANGUAGE_ENGINE)
    config.parameters["tokenizer_dir"].string_value = str(root / LANGUAGE_FOLDER)
    path.write_text(text_format.MessageToString(config), "utf-8")
    name = path.relative_to(around).as_posix()
    files = {key: entry for key, entry in bundle.manifest["files"].items() if key != name}  # this one is the run's own
    (around / MANIFEST).write_text(json.dumps(bundle.manifest | {"files": files}), "utf-8")
    return around / REPOSITORY
