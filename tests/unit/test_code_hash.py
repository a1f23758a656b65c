"""The hash of a conversion's code covers everything that the code imports, and no name is skipped."""

from importlib.util import find_spec

import pytest

from videollama_converters.engine_options import EngineOptions
from videollama_converters.engine_steps import Conversion
from videollama_converters.steps import code_hash as module
from videollama_converters.steps.code_hash import code_hash
from videollama_converters.steps.progress import SilentProgress


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """Three modules: `start` imports `near`, and `near` imports `far`; a test may rewrite them."""
    texts = {"start": "from videollama_core.near import x", "near": "import videollama_core.far", "far": "x = 1"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "_source", lambda name: tmp_path / name.split(".")[-1])
    monkeypatch.setattr(module, "_is_module", lambda name: (tmp_path / name.split(".")[-1]).is_file())
    return tmp_path


@pytest.mark.parametrize("changed", ["start", "near", "far"])
def test_a_change_anywhere_below_changes_the_hash(sources, changed):
    before = code_hash("start")
    (sources / changed).write_text((sources / changed).read_text() + "  # changed")
    assert code_hash("start") != before


def test_an_unknown_module_name_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="videollama_core.connectors"):
        code_hash("videollama_core.connectors")


def modules_of(monkeypatch, *names):
    """Every module that a hash covers, without the package's name."""
    seen, real = set(), module._source
    with monkeypatch.context() as patch:
        patch.setattr(module, "_source", lambda name: seen.add(name) or real(name))
        code_hash(*(f"videollama_converters.{name}" for name in names))
    return {name.split(".", 1)[-1] for name in seen}


NETWORKS = {"model.vision", "model.connector", "model.audio", "model.decoder", "checkpoint.parts", "checkpoint.shards"}


EXPORT = {"export.graphs", "export.graph_specs"}


def test_a_graphs_hash_covers_the_networks_and_the_exporter(monkeypatch):
    for name in ("export.graphs", "tensorrt.fp8", "export.compare"):
        assert modules_of(monkeypatch, name) >= NETWORKS | EXPORT


@pytest.mark.parametrize(
    ("step", "others"),
    [
        ("export.graphs", ("assemble", "export.split_language_model", "tensorrt_llm.recipe", "hub.snapshot")),
        ("export.split_language_model", ("assemble", "export.graphs", "tensorrt.build")),
        ("assemble", ("export.graphs", "tensorrt.build")),
    ],
)
def test_a_step_is_repeated_only_when_its_own_code_changes(monkeypatch, step, others):
    """With one hash over all of convert.py, a change to how the repository is assembled exported every graph again."""
    covered = modules_of(monkeypatch, step)
    for other in others:
        assert find_spec(f"videollama_converters.{other}")
        assert other not in covered


def test_a_step_that_names_no_module_is_an_error(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="exporter"):
        Conversion(None, {}, tmp_path, SilentProgress(), EngineOptions(), {}).inputs("exporter")
