"""Pieces of an answer -> outputs of the public entry, with a stand-in for Triton's module."""

import importlib
import json
import sys
from types import ModuleType

import pytest

from videollama_core.protocol import contract
from videollama_core.protocol.messages import Usage
from videollama_server.stages.entry import Piece, Summary


@pytest.fixture
def outputs(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    names = [f"videollama_server.stages.{name}" for name in ("python_backend", "calls", "entry_stage")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(names[-1]).outputs
    for name in names:
        sys.modules.pop(name, None)


def test_a_piece_becomes_outputs_of_the_contract(outputs):
    assert outputs(Piece("é", [5, 6])) == {"text": ["é".encode()], "output_ids": [5, 6]}
    assert outputs(Piece("")) == {"text": [b""]}  # nothing was added: no empty tensor
    last = outputs(Piece("!", [7], Summary("stop", Usage(3, 2, 1), {"total": 0.5})))
    assert set(last) <= {tensor.name for tensor in contract.ENTRY.outputs}
    assert json.loads(last["summary"][0]) == {
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "media_tokens": 2, "completion_tokens": 1},
        "seconds": {"total": 0.5},
    }
