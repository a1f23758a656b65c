"""Every config.pbtxt, graph and adapter against videollama_core/protocol/contract.py."""

import ast
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from conftest import ROOT
from videollama_converters.assemble import assemble
from videollama_converters.engine_options import MEDIA_TOKEN_MEMORIES, EngineOptions
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_core.checkpoint.read_config import published_config
from videollama_core.protocol.contract import (
    ENCODER,
    ENSEMBLE,
    ENTRY,
    LANGUAGE_MODEL,
    OWN_SAMPLING,
    PERCEPTION,
    STAGES,
)

REPOSITORY = ROOT / "model_repository"


@pytest.fixture(scope="module")
def assembled(tmp_path_factory) -> Path:
    """The repository of a bundle for a CPU."""
    folder = tmp_path_factory.mktemp("bundle") / "repository"
    assemble(folder, EngineOptions(), published_config("VideoLLaMA2-7B"))
    return folder


def config(stage: str, repository: Path = REPOSITORY) -> model_config_pb2.ModelConfig:
    return text_format.Parse((repository / stage / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig())


def described(tensors) -> list[tuple]:
    return [(t.name, model_config_pb2.DataType.Name(t.data_type), tuple(t.dims)) for t in tensors]


def test_the_repository_holds_the_stages_and_nothing_else():
    assert {path.name for path in REPOSITORY.iterdir()} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_a_bundles_config_has_the_tensors_of_the_contract(stage, assembled):
    tracked, written = config(stage.name), config(stage.name, assembled)
    assert not tracked.input and not tracked.output  # nobody writes a tensor twice
    assert written.name == stage.name and written.max_batch_size == stage.max_batch_size
    assert described(written.input) == [(t.name, f"TYPE_{t.dtype}", t.dims) for t in stage.inputs]
    assert described(written.output) == [(t.name, f"TYPE_{t.dtype}", t.dims) for t in stage.outputs]
    assert [t.optional for t in written.input] == [t.optional for t in stage.inputs]
    if not written.ensemble_scheduling.step:  # an ensemble is decoupled through its steps
        assert written.model_transaction_policy.decoupled == stage.decoupled
        assert all(group.kind == model_config_pb2.ModelInstanceGroup.KIND_CPU for group in written.instance_group)


@pytest.mark.parametrize("name", [PERCEPTION.name, ENSEMBLE.name])
def test_an_ensemble_uses_only_what_exists(name, assembled):
    """Each step's tensors are its stage's, and each input comes from the caller or from an earlier step."""
    ensemble = config(name, assembled)
    known = {tensor.name for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        stage = STAGES[step.model_name]
        assert set(step.input_map) <= {t.name for t in stage.inputs}
        assert {t.name for t in stage.inputs if not t.optional} <= set(step.input_map)
        assert set(step.input_map.values()) <= known
        assert set(step.output_map) <= {t.name for t in stage.outputs}
        known |= set(step.output_map.values())
    assert {tensor.name for tensor in ensemble.output} <= known


def test_triton_caches_nothing():
    """Triton compares 64 bits of a non-cryptographic hash; the entry caches media itself."""
    assert not [name for name in STAGES if config(name).response_cache.enable]


@pytest.mark.parametrize("memory", MEDIA_TOKEN_MEMORIES)
def test_a_repository_for_tensorrt(memory, tmp_path):
    """Tables in float16, on the GPU or not."""
    options = EngineOptions("tensorrt", "bfloat16", recipe=Recipe(), media_token_memory=memory)
    model, repository = published_config("VideoLLaMA2-7B"), tmp_path / "repository"
    assemble(repository, options, model)
    configs = {name: config(name, repository) for name in STAGES}
    (group,) = configs[ENCODER.name].instance_group
    assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == f"KIND_{memory.upper()}"
    assert list(group.gpus) == ([0] if memory == "gpu" else [])
    for name in (ENCODER.name, PERCEPTION.name):
        types = {t.name: model_config_pb2.DataType.Name(t.data_type) for t in configs[name].output}
        assert types["prompt_embedding_table"] == "TYPE_FP16"
    assert options.pool_bytes(model) == (64 * 845 * 4096 * 2 if memory == "gpu" else 0)


# TensorRT-LLM 1.2.1, triton_backend/all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt: name -> type, dims.
TENSORRT_LLM = {
    "input_ids": ("INT32", (-1,)),
    "input_lengths": ("INT32", (1,)),
    "request_output_len": ("INT32", (1,)),
    "end_id": ("INT32", (1,)),
    "pad_id": ("INT32", (1,)),
    "stop_words_list": ("INT32", (2, -1)),
    "temperature": ("FP32", (1,)),
    "runtime_top_k": ("INT32", (1,)),
    "runtime_top_p": ("FP32", (1,)),
    "repetition_penalty": ("FP32", (1,)),
    "seed": ("UINT64", (1,)),
    "return_generation_logits": ("BOOL", (1,)),
    "exclude_input_in_output": ("BOOL", (1,)),
    "streaming": ("BOOL", (1,)),
    "stop": ("BOOL", (1,)),
    "prompt_embedding_table": ("FP32", (-1, -1)),
    "prompt_vocab_size": ("INT32", (1,)),
    "prompt_table_extra_ids": ("UINT64", (-1,)),
}


def test_the_language_model_has_tensorrt_llms_interface():
    ours = set(OWN_SAMPLING)  # and of no engine of TensorRT-LLM
    assert {t.name: (t.dtype, t.dims) for t in LANGUAGE_MODEL.inputs if t not in ours} == TENSORRT_LLM
    assert ours <= set(LANGUAGE_MODEL.inputs) and all(t.optional for t in ours)
    required = {t.name for t in LANGUAGE_MODEL.inputs if not t.optional}
    assert required == {"input_ids", "input_lengths", "request_output_len"}
    assert {t.name: (t.dtype, t.dims) for t in LANGUAGE_MODEL.outputs} == {
        "output_ids": ("INT32", (-1, -1)),
        "sequence_length": ("INT32", (-1,)),
        "generation_logits": ("FP32", (-1, -1, -1)),
        "kv_cache_reused_blocks": ("INT32", (1,)),
    }


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("*/1/model.py")), ids=lambda path: path.parts[-3])
def test_an_adapter_is_thin(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < 10
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    # A bundle holds a copy of this file: one stable name of ours, so that our modules may be arranged anew.
    assert [ast.unparse(node) for node in imports] == ["from videollama_server.stages import load_stage"]


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("*/1/model.py")), ids=lambda path: path.parts[-3])
def test_an_adapter_loads_the_stage_of_its_folder(path):
    assert f'load_stage("{path.parts[-3]}")' in path.read_text("utf-8")


def test_every_python_stage_has_an_adapter():
    python = {name for name in STAGES if config(name).backend == "python"}
    assert {path.parts[-3] for path in REPOSITORY.glob("*/1/model.py")} == python


def test_a_tensor_name_has_one_type():
    """The same tensor name never means two types."""
    seen: dict[str, str] = {}
    for stage in STAGES.values():
        for tensor in (*stage.inputs, *stage.outputs):
            if (stage, tensor.name) == (ENTRY, "stop") or (stage == LANGUAGE_MODEL and tensor.name == "stop"):
                continue  # stop strings of the entry; TensorRT-LLM's stop request
            assert seen.setdefault(tensor.name, tensor.dtype) == tensor.dtype, tensor.name
