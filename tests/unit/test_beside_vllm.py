"""The code around vLLM that also runs where vLLM is not installed; tests/parity/test_vllm.py tests vLLM itself."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videollama_core.engines.table import language_engine
from videollama_core.generation.vllm_arguments import check_known, parse
from videollama_core.generation.vllm_runner import penalise
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest, ServerFailed
from videollama_core.protocol.messages import ResolvedSampling
from videollama_core.sampling import Sampler
from videollama_server.installation import check_vllm
from videollama_server.supervisor import ServerOptions, TritonServer


@pytest.mark.parametrize("penalty", [0.5, 1.05, 3.0])
def test_the_penalty_equals_our_own_samplers(penalty):
    scores = np.random.default_rng(0).normal(size=50).astype(np.float32)
    sampler = Sampler(ResolvedSampling(8, True, 1.0, 0, 1.0, penalty, 0))
    generated = [int(scores.argmax()), 7, 7, 49]
    for token in generated:
        sampler.take(token)
    penalised = penalise(generated, torch.from_numpy(scores.copy()), penalty)
    assert int(penalised.argmax()) == sampler.choose(scores)
    changed = {int(place) for place in np.flatnonzero(penalised.numpy() != scores)}
    assert changed == set(generated)


def test_vllm_is_refused_before_the_server_starts(monkeypatch, tmp_path):
    with pytest.raises(ArtifactMismatch, match="converted for TensorRT-LLM.*--engine torch or onnx"):
        check_vllm(SimpleNamespace(language_engine=language_engine("tensorrt-llm"), root=tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerFailed, match="this Python has no vllm; install it as docs/gpu.md says"):
        check_vllm(SimpleNamespace(language_engine=language_engine("torch"), root=tmp_path))


def test_engine_arguments_pass_through():
    arguments = parse(
        ["tensor_parallel_size=2", "--kv-cache-dtype=fp8", "enable_expert_parallel=true", "quantization=fp8"]
    )
    assert arguments == {
        "tensor_parallel_size": 2,
        "kv_cache_dtype": "fp8",
        "enable_expert_parallel": True,
        "quantization": "fp8",
    }
    check_known(arguments, [*arguments, "model"], "0.32.0")
    with pytest.raises(ArtifactMismatch, match="vLLM 0.32.0 has no engine argument quantization"):
        check_known(arguments, ["tensor_parallel_size", "kv_cache_dtype", "enable_expert_parallel"], "0.32.0")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("tensor_parallel_size", "expected NAME=VALUE"),
        ("=2", "expected NAME=VALUE"),
        ("max-model-len=8192", "max_model_len is set by the stage"),
        ("data_parallel_size=2", "start a server on each GPU"),
    ],
)
def test_arguments_that_cannot_be_passed_are_refused_before_the_server_starts(word, reason, tmp_path):
    with pytest.raises(InvalidRequest, match=reason):
        check_vllm(SimpleNamespace(engine="torch", root=tmp_path), [word])


def test_arguments_without_vllm_are_refused(bundle_of):
    server = TritonServer(bundle_of("qwen2-siglip-16f"), ServerOptions(vllm_arg=("tensor_parallel_size=2",)))
    with pytest.raises(InvalidRequest, match="needs --llm vllm"):
        server.start()
