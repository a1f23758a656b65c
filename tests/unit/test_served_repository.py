"""The repository that a server reads: a bundle may be moved, whichever engine runs its language model."""

import json
import shutil

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from videollama_converters.assemble import assemble
from videollama_converters.engine_options import EngineOptions
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_core.engines.bundle import LANGUAGE_ENGINE, LANGUAGE_FOLDER, MANIFEST, REPOSITORY, Bundle
from videollama_server.repository import served_repository

CONFIG = f"{REPOSITORY}/tensorrt_llm/config.pbtxt"


@pytest.fixture
def bundle(bundle_of, tmp_path):
    """The repository and manifest of a bundle for TensorRT-LLM, without its engines, which need a GPU to build."""
    made = Bundle.open(bundle_of("mistral-clip-8f"))
    folder = tmp_path / "made here"
    folder.mkdir()
    shutil.copytree(made.language_folder, folder / LANGUAGE_FOLDER)
    options = EngineOptions("tensorrt", "float16", recipe=Recipe("float16"))
    assemble(folder / REPOSITORY, options, made.config)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size}
        for path in folder.rglob("*")
        if path.is_file()
    }
    named = {"engine": "tensorrt", "llm_engine": "tensorrt-llm", "files": files}
    (folder / MANIFEST).write_text(json.dumps(made.manifest | named))
    return folder


def test_a_moved_bundle_is_served_from_its_new_location(bundle, tmp_path):
    """Its config held the paths of the folder that it was converted to."""
    assert str(tmp_path) not in (bundle / CONFIG).read_text()
    moved, runtime = tmp_path / "mounted", tmp_path / "run"
    bundle.rename(moved)
    runtime.mkdir()
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    served = served_repository(Bundle.open(moved), runtime)
    assert served.is_relative_to(runtime)
    config = text_format.Parse((served / "tensorrt_llm/config.pbtxt").read_text(), ModelConfig())
    assert config.parameters["gpt_model_path"].string_value == str(moved / LANGUAGE_ENGINE)
    assert config.parameters["tokenizer_dir"].string_value == str(moved / LANGUAGE_FOLDER)
    assert config.backend == "tensorrtllm" and config.parameters["max_beam_width"].string_value == "1"
    seen = Bundle.open((served / "encoder").parents[1])  # as a stage finds its bundle
    assert seen.tokenizer().encode("word") == Bundle.open(moved).tokenizer().encode("word")
    assert before == {path: path.stat().st_mtime_ns for path in moved.rglob("*")}  # it may be mounted read-only


def test_other_bundles_are_served_unchanged(bundle_of, tmp_path):
    bundle = Bundle.open(bundle_of("mistral-clip-8f"))
    assert served_repository(bundle, tmp_path) == bundle.root.resolve() / REPOSITORY
    assert not list(tmp_path.iterdir())
