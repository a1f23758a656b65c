"""--engine tensorrt-rtx on a machine without a GPU: built, checked, and loaded as far as NVIDIA's runtime goes without a driver."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import checkpoint
from videollama_converters.convert import convert
from videollama_converters.engine_options import EngineOptions
from videollama_converters.tensorrt.build_rtx import FP8_TARGETS, TARGETS, settings_of
from videollama_core.engines import tensorrt_rtx_encoders
from videollama_core.engines.bundle import Bundle, engine_path, runtime_cache_path
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.engines.specs import CONNECTOR, VISION_ENCODER
from videollama_core.engines.table import ENCODER_ENGINES
from videollama_core.engines.tensorrt_rtx import check_rtx_sidecar, rtx_logger, rtx_version
from videollama_core.engines.tensorrt_rtx_encoders import RtxEngine
from videollama_core.generation.language_models import load_runner
from videollama_core.generation.torch_runner import TorchRunner
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest

trt = pytest.importorskip(
    "tensorrt_rtx", reason="the extra tensorrt-rtx has wheels for Linux on x86-64 and Windows only"
)
SMALL = "mistral-clip-8f"


@pytest.fixture(scope="session")
def rtx_bundle(tmp_path_factory):
    options = EngineOptions("tensorrt-rtx", "bfloat16", max_seq_len=1024, slots=2)
    return Bundle.open(convert(checkpoint(SMALL), tmp_path_factory.mktemp("rtx") / "bundle", options=options))


def test_a_bundle_is_made_without_a_gpu(rtx_bundle):
    assert (rtx_bundle.engine, rtx_bundle.llm_engine) == ("tensorrt-rtx", "torch")
    for graph in (VISION_ENCODER, CONNECTOR):
        path = rtx_bundle.root / engine_path(graph.name)
        facts = check_rtx_sidecar(path, rtx_version(), 8.9)
        assert path.stat().st_size > 100_000 and facts["targets"] == list(TARGETS)
        assert set(facts["dtypes"]) == {*graph.inputs, *graph.outputs}


def test_float32_is_not_computed_in_tf32(rtx_bundle):
    """NVIDIA's builder does that by default."""
    builder = trt.Builder(rtx_logger())
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)
    for graph in (VISION_ENCODER, CONNECTOR):
        settings = settings_of(builder, graph, rtx_bundle.config, TARGETS)
        assert not settings.get_flag(trt.BuilderFlag.TF32)
        assert (settings.num_optimization_profiles, settings.num_compute_capabilities) == (2, len(TARGETS))


def test_only_existing_names_of_the_library_are_used():
    """Code that runs only on a GPU: every attribute used on the runtime's objects is checked against the package."""
    kinds = {
        "trt": trt,
        "_runtime": trt.Runtime,
        "_engine": trt.ICudaEngine,
        "_context": trt.IExecutionContext,
        "_cache": trt.IRuntimeCache,
        "settings": trt.IRuntimeConfig,
    }
    seen = set()
    for node in ast.walk(ast.parse(Path(tensorrt_rtx_encoders.__file__).read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
            if owner in kinds:
                assert hasattr(kinds[owner], node.attr), f"{owner}.{node.attr}"
                seen.add(owner)
    assert seen == set(kinds)
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")


def test_its_language_model_runs_on_pytorch(rtx_bundle):
    runner = load_runner(rtx_bundle, 2)
    assert isinstance(runner, TorchRunner)
    assert np.isfinite(runner.prefill(0, np.arange(5), None, np.ones(5, bool))).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/gpu loads the engines")
def test_without_a_driver_the_engine_raises_a_clear_error(rtx_bundle):
    with pytest.raises(
        ArtifactMismatch, match=r"cannot be loaded by TensorRT-RTX .*CUDA.*needs an NVIDIA GPU and a driver"
    ):
        MediaEncoder(rtx_bundle)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensorrt_rtx": "1.4.0.76"}, "was built by TensorRT-RTX 1.4.0.76"),
        ({"targets": [12.0]}, "runs on compute capabilities 12.0, but this GPU has 9.0"),
        ({"targets": None}, "damaged"),
    ],
)
def test_an_engine_of_another_version_or_gpu_is_refused(change, reason, rtx_bundle, tmp_path):
    facts = json.loads((rtx_bundle.root / engine_path(CONNECTOR.name)).with_suffix(".json").read_text())
    path = tmp_path / "connector.engine"
    path.with_suffix(".json").write_text(json.dumps(facts | change))
    with pytest.raises(ArtifactMismatch, match=reason):
        check_rtx_sidecar(path, rtx_version(), 9.0)
    if "tensorrt_rtx" in change:  # before anything is loaded
        with pytest.raises(ArtifactMismatch, match=reason):
            RtxEngine(path, CONNECTOR, tmp_path / runtime_cache_path("connector"))


def test_hopper_is_refused_by_name(rtx_bundle):
    with pytest.raises(ArtifactMismatch, match=r"8.0, 8.6, 8.9, 12.0, but this GPU has 9.0: convert with"):
        check_rtx_sidecar(rtx_bundle.root / engine_path(CONNECTOR.name), rtx_version(), 9.0)


def test_the_two_engines_are_two_choices():
    for name, engine in ENCODER_ENGINES.items():
        dtype, beside = "float32", engine.language_engines
        assert EngineOptions(name, dtype).llm_engine == beside[0]
        for llm_engine in beside:
            assert EngineOptions(name, dtype, llm_engine=llm_engine).llm_engine == llm_engine
    with pytest.raises(
        InvalidRequest,
        match="tensorrt-rtx cannot be combined with a language model on tensorrt-llm; use --llm-engine torch or vllm",
    ):
        EngineOptions("tensorrt-rtx", "bfloat16", llm_engine="tensorrt-llm")
    with pytest.raises(InvalidRequest, match="sends media tokens to the language model over gRPC"):
        EngineOptions("tensorrt-rtx", "bfloat16", media_token_memory="gpu")
    assert all(target >= 8.9 for target in FP8_TARGETS)
