"""Conversion: folders that lack something, that hold somebody else's files, and that a disk has no room for."""

import pytest

from checkpoints import copy
from videollama_converters.convert import convert
from videollama_core.checkpoint.tokenizer_files import copy_tokenizer
from videollama_core.protocol.errors import ArtifactMismatch, CheckpointMismatch

SMALL = "mistral-clip-8f"


@pytest.mark.parametrize("left", [(), ("vocab.json",), ("merges.txt",)])
def test_a_checkpoint_without_a_vocabulary_is_refused(left, tmp_path):
    """Out of tokenizer_config.json alone, transformers makes a tokenizer of three special tokens."""
    source = copy(SMALL, tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer.model"):
        (source / name).unlink()
    for name in left:
        (source / name).write_text("{}")
    with pytest.raises(CheckpointMismatch, match=r"nor tokenizer\.model, nor vocab\.json with merges\.txt"):
        copy_tokenizer(source, tmp_path)


@pytest.mark.parametrize("name", ["llm", "model_repository"])
def test_what_no_conversion_wrote_is_not_replaced(name, tmp_path):
    """As with --out build for a checkpoint in build/llm, or --out . in this source tree."""
    source = copy(SMALL, tmp_path / "source").rename(tmp_path / name)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactMismatch, match=f"holds {name}, which a conversion would replace"):
        convert(source, tmp_path, tmp_path / "source/towers/clip-vit-tiny-patch14-56")
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
