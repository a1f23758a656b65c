"""The table of engines: every entry is complete, and an unknown name is an error."""

import json
import shutil

import pytest

from videollama_converters.engine_steps import ENCODER_STEPS
from videollama_core.engines.bundle import MANIFEST, Bundle
from videollama_core.engines.media_encoder import load_encoders
from videollama_core.engines.table import ENCODER_ENGINES, LANGUAGE_ENGINES, encoder_engine, language_engine
from videollama_core.generation.language_models import RUNNERS, SCHEDULERS, load_runner
from videollama_core.protocol.errors import ArtifactMismatch


@pytest.mark.parametrize("engine", ENCODER_ENGINES.values(), ids=ENCODER_ENGINES)
def test_everything_an_entry_names_exists(engine):
    assert callable(engine.load_encoders()) and callable(engine.load_machine_check())
    assert engine.dtypes and engine.name in ENCODER_STEPS
    assert [language_engine(name).name for name in engine.language_engines] == list(engine.language_engines)


def test_related_tables_name_the_same_engines():
    assert set(ENCODER_STEPS) == set(ENCODER_ENGINES)
    ours = {name for name, engine in LANGUAGE_ENGINES.items() if not engine.is_backend}
    assert set(RUNNERS) | set(SCHEDULERS) == ours and not set(RUNNERS) & set(SCHEDULERS)


@pytest.mark.parametrize("ask", [encoder_engine, language_engine])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(ask):
    with pytest.raises(ArtifactMismatch, match="'openvino'.* expected one of onnx, torch"):
        ask("openvino")


@pytest.mark.parametrize("field", ["engine", "llm_engine"])
def test_a_bundle_of_an_unknown_engine_is_refused(field, bundle_of, tmp_path):
    """A language model on an unknown engine was once run by ONNX Runtime."""
    bundle = Bundle.open(bundle_of("mistral-clip-8f"))
    manifest = bundle.manifest | {field: "openvino"}
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.root, folder, symlinks=True)
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtifactMismatch, match="openvino.*convert again"):
        Bundle.open(folder)
    unchecked = Bundle(folder, bundle.config, manifest)
    with pytest.raises(ArtifactMismatch, match="openvino"):
        load_encoders(unchecked) if field == "engine" else load_runner(unchecked, 1)


def test_engines_whose_graphs_take_uint8_pixels_refuse_noise():
    """TensorRT-RTX truncated noised pixels to uint8, and answered."""
    assert {name for name, engine in ENCODER_ENGINES.items() if engine.takes_noise} == {"onnx", "torch"}
    assert all(not engine.takes_noise for engine in ENCODER_ENGINES.values() if engine.is_tensorrt)
