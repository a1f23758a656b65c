"""The hash of a conversion's code covers everything the code imports, and no name is skipped."""

import pytest

from videollama_converters import code_hash as module
from videollama_converters.code_hash import code_hash


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """Three modules, of which `start` imports `near`, and `near` imports `far`; a test may write them anew."""
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


def test_a_name_that_is_no_module_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="videollama_core.connectors"):
        code_hash("videollama_core.connectors")


def test_the_networks_and_the_exporter_decide_what_a_conversion_writes():
    seen = set()
    real = module._source
    module_names = (
        "model.vision",
        "model.connector",
        "model.audio",
        "model.decoder",
        "checkpoint.parts",
        "checkpoint.shards",
    )

    def note(name):
        seen.add(name)
        return real(name)

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "_source", note)
    try:
        code_hash("videollama_converters.convert")
    finally:
        patch.undo()
    wanted = {f"videollama_core.{name}" for name in module_names} | {"videollama_converters.export_onnx"}
    assert wanted <= seen, wanted - seen
