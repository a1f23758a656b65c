"""A tensor's shape, type and size are checked against the contract before anything is built from it."""

import pytest

from videollama_core.protocol.contract import ENTRY, LANGUAGE_MODEL, STAGES, Stage
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.limits import MEDIA_FILES, STOP_STRINGS

GOOD = [
    (ENTRY, "question", [1], "BYTES", 4),
    (ENTRY, "media", [2], "BYTES", 4000),
    (ENTRY, "media", [0], "BYTES", 0),  # what reads it has more to say
    (ENTRY, "temperature", [1], "FP32", 4),
    (LANGUAGE_MODEL, "input_ids", [1, 3], "INT32", 12),
    (LANGUAGE_MODEL, "prompt_embedding_table", [1, 3, 5], "FP32", 60),
]
BAD = [
    (ENTRY, "question", [1, 1], "BYTES", 8, "expected [1]"),
    (ENTRY, "question", [], "BYTES", 8, "expected [1]"),
    (ENTRY, "question", [2], "BYTES", 8, "expected [1]"),
    (ENTRY, "question", [1] * 10**6, "BYTES", 8, "expected [1]"),
    (ENTRY, "question", [1], "BYTES", 3, "do not match"),
    (ENTRY, "question", [1], "INT32", 4, "expected BYTES"),
    (ENTRY, "colour", [1], "BYTES", 8, "no tensor 'colour'"),
    (ENTRY, "media", [-1], "BYTES", 8, "expected [-1]"),
    (ENTRY, "media", [2], "BYTES", 7, "do not match"),
    (ENTRY, "media", [MEDIA_FILES.value + 1], "BYTES", 10**6, "media_files"),
    (ENTRY, "stop", [STOP_STRINGS.value + 1], "BYTES", 10**6, "stop_strings"),
    (ENTRY, "temperature", [1], "FP32", 8, "do not match"),
    (LANGUAGE_MODEL, "input_ids", [3], "INT32", 12, "expected [1, -1]"),
    (LANGUAGE_MODEL, "input_ids", [2, 3], "INT32", 24, "expected [1, -1]"),
    (LANGUAGE_MODEL, "input_ids", [1, 2**62], "INT32", 0, "positions"),
    (LANGUAGE_MODEL, "input_ids", [1, 2**62], None, None, "positions"),
    (LANGUAGE_MODEL, "input_ids", [1, 3], "INT32", 0, "do not match"),
    (LANGUAGE_MODEL, "prompt_embedding_table", [1, 2**32, 2**32], "FP32", 0, "table_values"),
    (STAGES["encoder"], "frames", [1, 2**32, 2**32, 3], "UINT8", 0, "frame_values"),
]


@pytest.mark.parametrize(("stage", "name", "shape", "datatype", "data_bytes"), GOOD)
def test_tensors_of_the_contract_are_accepted(stage: Stage, name, shape, datatype, data_bytes):
    stage.check_input(name, shape, datatype, data_bytes)


@pytest.mark.parametrize(("stage", "name", "shape", "datatype", "data_bytes", "said"), BAD)
def test_other_tensors_are_refused(stage: Stage, name, shape, datatype, data_bytes, said):
    with pytest.raises(InvalidRequest) as raised:
        stage.check_input(name, shape, datatype, data_bytes)
    assert said in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_every_input_of_any_size_has_a_limit(stage):
    for tensor in stage.inputs:
        assert (tensor.most is not None) == (-1 in tensor.dims), tensor.name
