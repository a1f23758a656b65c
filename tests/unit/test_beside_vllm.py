"""What surrounds vLLM, where it is not installed too; tests/parity/test_vllm.py is about vLLM itself."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videollama_core.generation.vllm_scheduler import penalise
from videollama_core.protocol.errors import ArtifactMismatch, ServerFailed
from videollama_core.protocol.messages import ResolvedSampling
from videollama_core.sampling import Sampler
from videollama_server.supervisor import check_vllm


@pytest.mark.parametrize("penalty", [0.5, 1.05, 3.0])
def test_the_penalty_is_that_of_our_own_sampler(penalty):
    scores = np.random.default_rng(0).normal(size=50).astype(np.float32)
    sampler = Sampler(ResolvedSampling(8, True, 1.0, 0, 1.0, penalty, 0))
    generated = [int(scores.argmax()), 7, 7, 49]
    for token in generated:
        sampler.take(token)
    found = penalise(generated, torch.from_numpy(scores.copy()), penalty)
    assert int(found.argmax()) == sampler.choose(scores)
    changed = {int(place) for place in np.flatnonzero(found.numpy() != scores)}
    assert changed == set(generated)


def test_vllm_is_refused_before_the_server_starts(monkeypatch, tmp_path):
    with pytest.raises(ArtifactMismatch, match="converted for TensorRT-LLM.*--engine torch or onnx"):
        check_vllm(SimpleNamespace(engine="tensorrt", root=tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerFailed, match="this Python has no vllm; install it as docs/gpu.md says"):
        check_vllm(SimpleNamespace(engine="torch", root=tmp_path))
