"""Conversion: folders that lack something, that hold somebody else's files, and that a disk has no room for."""

import pytest

from checkpoints import copy
from videollama_core.checkpoint.tokenizer_files import copy_tokenizer
from videollama_core.protocol.errors import CheckpointMismatch

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
