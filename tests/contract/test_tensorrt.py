"""TensorRT 10.14: every exported graph is covered by its operator table, known pitfalls are caught, and its API is used as recorded."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from conftest import FEATURE_TOLERANCE, ROOT, VARIANTS, checkpoint
from videollama_converters.convert import convert
from videollama_converters.dry_run import describe
from videollama_converters.engine_options import EngineOptions, encoder_dtype
from videollama_converters.export import graphs, kept_graphs
from videollama_converters.export.graph_specs import SPECS, example_inputs, graph_sources
from videollama_converters.export.graphs import build_module, float_pixels, trace_graph
from videollama_converters.tensorrt.build import tensor_types
from videollama_converters.tensorrt.operators import check_graph
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_core.checkpoint.fill import fill
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.onnx_runtime import OnnxEngine
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, DECODER, VISION_ENCODER, graphs_of
from videollama_core.engines.tensorrt_encoders import check_sidecar, describe_machine
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest

# TensorRT's Python API as of 10.14, unchanged in 11 (python/src/infer/pyCore.cpp, pyGraph.cpp): names that may be used.
MODULE = {
    "Logger", "Builder", "NetworkDefinitionCreationFlag", "OnnxParser", "MemoryPoolType", "ProfilingVerbosity", "Runtime",
    "ExecutionContextAllocationStrategy", "BuilderFlag", "__version__",
}  # fmt: skip
MEMBERS = {"STRONGLY_TYPED", "WORKSPACE", "DETAILED", "WARNING", "USER_MANAGED", "TF32"}
METHODS = {
    "builder": {"create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"},
    "parser": {"parse_from_file", "num_errors", "get_error"},
    "settings": {
        "set_memory_pool_limit", "profiling_verbosity", "add_optimization_profile", "create_timing_cache",
        "set_timing_cache", "get_timing_cache", "clear_flag",
    },
    "profile": {"set_shape"},
    "_runtime": {"deserialize_cuda_engine"},
    "_engine": {
        "get_tensor_name", "num_io_tensors", "num_optimization_profiles", "get_tensor_profile_shape",
        "create_execution_context", "device_memory_size_v2",
    },
    "context": {"set_device_memory"},  # since 10.1, as Polygraphy 0.53.6 calls it (backend/trt/runner.py)
    "_context": {
        "set_optimization_profile_async", "set_input_shape", "set_tensor_address", "get_tensor_shape", "execute_async_v3",
    },
}  # fmt: skip
SOURCES = (
    ROOT / "converters/videollama_converters/tensorrt/build.py",
    ROOT / "videollama_core/engines/tensorrt_encoders.py",
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_recorded_names_of_the_api_are_used(path):
    seen = 0
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        if isinstance(owner, ast.Name) and owner.id in ("trt", "tensorrt"):
            assert node.attr in MODULE, node.attr
            seen += 1
        elif (
            isinstance(owner, ast.Attribute)
            and isinstance(owner.value, ast.Name)
            and owner.value.id in ("trt", "tensorrt")
        ):
            assert node.attr in MEMBERS, node.attr
        name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
        if name in METHODS:
            assert node.attr in METHODS[name], f"{name}.{node.attr}"
            seen += 1
    assert seen >= 8


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_served_graph_is_in_the_table(variant, bundle_of):
    bundle = Bundle.open(bundle_of(variant))
    for graph in graphs_of(bundle.config):
        if graph is DECODER and bundle.config.language.experts:
            continue  # it runs the chosen experts alone, on ONNX Runtime; with TensorRT the language model is TensorRT-LLM's
        assert not check_graph(bundle.graph(graph.name)), graph.name


@pytest.mark.parametrize("graph", [VISION_ENCODER, CONNECTOR, AUDIO_ENCODER], ids=lambda graph: graph.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_typed_graphs(graph, dtype, typed_graph):
    """In half precision: norms in float32, inputs and outputs in the engine's type, values near PyTorch's; depthwise
    bfloat16 is caught.
    """
    parts = open_checkpoint(checkpoint("av-qwen2-siglip"))
    path = typed_graph("av-qwen2-siglip", graph, dtype)
    reasons = [violation.reason for violation in check_graph(path)]
    if dtype is torch.bfloat16:
        assert all("depthwise" in reason for reason in reasons) and bool(reasons) == (graph is CONNECTOR)
        assert encoder_dtype(graph, "bfloat16") == ("bfloat16" if graph is VISION_ENCODER else "float16")
        assert tensor_types(path)[graph.outputs[0]] == "bfloat16"
        return  # ONNX Runtime's CPU has no kernels for the rest
    assert not reasons
    types = tensor_types(path)
    assert types[graph.outputs[0]] == "float16"
    inputs = example_inputs(graph, parts.config, dtype=dtype)
    arrays = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
    assert {name: str(array.dtype) for name, array in arrays.items()}.items() <= types.items()
    computed = OnnxEngine(path, graph.inputs, graph.outputs).run(arrays)[graph.outputs[0]].astype(np.float32)
    module = build_module(graph, parts.config).to_empty(device="cpu")
    fill(module, graph_sources(graph, parts), graph.name)
    with torch.inference_mode():
        wanted = module(*example_inputs(graph, parts.config)).numpy()
    cosine = (computed.ravel() @ wanted.ravel()) / np.linalg.norm(computed) / np.linalg.norm(wanted)
    assert cosine >= 0.9999
    assert np.abs(computed - wanted).max() <= 0.02 * np.abs(wanted).max() + FEATURE_TOLERANCE


# --- graphs that must be refused -------------------------------------------------------------------------------------------


def saved(tmp_path: Path, node: onnx.NodeProto, kind: int, shape: list[int], weights=None, opset: int = 18) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", kind, shape)],
        [value("y", kind, None)],
        [helper.make_tensor(*weights)] if weights else [],
    )
    path = tmp_path / "bad.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString())
    return path


def convolution(group: int, per_group: int, kind: int):
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    values = [0.0] * (group * per_group)
    return node, ("w", kind, [group, per_group, 1, 1], values)


def test_a_graph_is_exported_once_and_each_copy_is_the_callers_own():
    """Editing one copy, as ONNX Runtime's is edited, leaves the next copy unchanged."""
    config = open_checkpoint(checkpoint("av-qwen2-siglip")).config
    first, edited, last = (trace_graph(VISION_ENCODER, config) for _ in range(3))
    float_pixels(edited)
    assert edited.graph.inputs[0].dtype is ir.DataType.FLOAT
    assert first.graph.inputs[0].dtype is last.graph.inputs[0].dtype is ir.DataType.UINT8
    assert [str(node) for node in first.graph] == [str(node) for node in last.graph]


def test_a_graph_reveals_nothing_about_the_machine_that_exported_it(bundle_of):
    """The exporter writes a stack trace with the source tree's paths at every node."""
    graphs = sorted((Bundle.open(bundle_of("av-qwen2-siglip")).root / "onnx").glob("*.onnx"))
    assert len(graphs) == 5
    for path in graphs:
        assert str(ROOT).encode() not in path.read_bytes() and b"stack_trace" not in path.read_bytes(), path


def test_a_graph_kept_for_other_processes_is_the_one_that_was_exported(tmp_path, monkeypatch):
    config = open_checkpoint(checkpoint("av-qwen2-siglip")).config
    parameters = build_module(VISION_ENCODER, config).state_dict()

    def traced() -> bytes:
        monkeypatch.setattr(graphs, "_traced", {})
        graphs.write_without_values(trace_graph(VISION_ENCODER, config), parameters, tmp_path / "graph.onnx")
        return (tmp_path / "graph.onnx").read_bytes()

    monkeypatch.setenv("VL2_GRAPH_CACHE", str(tmp_path / "kept"))
    exported = traced()
    assert len(list((tmp_path / "kept").glob("*.onnx"))) == 1
    monkeypatch.setattr(graphs, "_export", None)
    assert traced() == exported
    monkeypatch.setattr(kept_graphs, "code_hash", lambda module: "of other code")
    with pytest.raises(TypeError):
        traced()


def test_the_check_before_a_conversion_exports_the_conversions_connector():
    """The check shortens the towers' layers, which the connector does not depend on: it is the costliest graph to
    export.
    """
    config = open_checkpoint(checkpoint("av-qwen2-siglip")).config
    shortened = replace(config, vision=replace(config.vision, select_layer=1))
    assert SPECS[CONNECTOR].decided_by(shortened) == SPECS[CONNECTOR].decided_by(config)
    for changed in ({"width": 48}, {"image_size": 70}):
        other = replace(config, vision=replace(config.vision, **changed))
        assert SPECS[CONNECTOR].decided_by(other) != SPECS[CONNECTOR].decided_by(config)


def test_depthwise_bfloat16_is_refused(tmp_path):
    node, weights = convolution(8, 1, TensorProto.BFLOAT16)
    (violation,) = check_graph(saved(tmp_path, node, TensorProto.BFLOAT16, [1, 8, 4, 4], weights))
    assert "depthwise convolution in BFLOAT16" in violation.reason
    node, weights = convolution(8, 1, TensorProto.FLOAT16)
    assert not check_graph(saved(tmp_path, node, TensorProto.FLOAT16, [1, 8, 4, 4], weights))


def test_depthwise_int8_is_refused(tmp_path):
    node, weights = convolution(8, 1, TensorProto.INT8)
    reasons = [
        violation.reason for violation in check_graph(saved(tmp_path, node, TensorProto.INT8, [1, 8, 4, 4], weights))
    ]
    assert any("multiple of 4" in reason for reason in reasons)


def test_norms_in_half_precision_are_refused(tmp_path):
    node = helper.make_node("LayerNormalization", ["x", "x"], ["y"])
    (violation,) = check_graph(saved(tmp_path, node, TensorProto.FLOAT16, [4]))
    assert "sums of squares" in violation.reason
    assert not check_graph(saved(tmp_path, node, TensorProto.FLOAT, [4]))


@pytest.mark.parametrize(
    ("node", "kind", "shape", "opset", "reason"),
    [
        (helper.make_node("Swish", ["x"], ["y"]), TensorProto.FLOAT, [4], 18, "not in TensorRT 10.14's table"),
        (helper.make_node("Add", ["x", "x"], ["y"]), TensorProto.FLOAT, [4], 23, "expected 9 to 20"),
        (helper.make_node("Sigmoid", ["x"], ["y"]), TensorProto.DOUBLE, [4], 18, "computes in DOUBLE"),
        (helper.make_node("Transpose", ["x"], ["y"]), TensorProto.UINT8, [4, 4], 18, "computes in UINT8"),
        (helper.make_node("Sigmoid", ["x"], ["y"]), TensorProto.FLOAT, [1] * 9, 18, "rank 9"),
        (helper.make_node("Conv", ["x", "x"], ["y"]), TensorProto.FLOAT, [1, 1, 1, 1], 18, "weights are computed"),
        (helper.make_node("Fused", ["x"], ["y"], domain="own"), TensorProto.FLOAT, [4], 18, "custom domain"),
    ],
)
def test_graphs_that_the_importer_cannot_read_are_refused(node, kind, shape, opset, reason, tmp_path):
    assert any(reason in violation.reason for violation in check_graph(saved(tmp_path, node, kind, shape, opset=opset)))


# --- engines and their side-cars -------------------------------------------------------------------------------------------

MACHINE = {"tensorrt": "10.14.1.48", "gpu": "NVIDIA H100 80GB HBM3", "capability": "9.0", "cuda": "13.1"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensorrt": "10.13.3.9"}, "was built for tensorrt 10.13.3.9"),
        ({"capability": "8.0", "gpu": "NVIDIA A100"}, r"was built for capability 8.0 \(NVIDIA A100\)"),
    ],
)
def test_an_engine_for_another_machine_is_refused_before_serving(change, reason, tmp_path):
    engine = tmp_path / "vision_encoder.engine"
    engine.with_suffix(".json").write_text(json.dumps({"machine": MACHINE}))
    assert check_sidecar(engine, MACHINE)["machine"] == MACHINE
    engine.with_suffix(".json").write_text(json.dumps({"machine": MACHINE | change}))
    with pytest.raises(ArtifactMismatch, match=f"{reason}.*convert again"):
        check_sidecar(engine, MACHINE)
    engine.with_suffix(".json").write_text("{")
    with pytest.raises(ArtifactMismatch, match="damaged"):
        check_sidecar(engine, MACHINE)


def test_without_tensorrt_the_conversion_says_so_at_once(tmp_path):
    try:
        describe_machine()
    except ArtifactMismatch:
        with pytest.raises(ArtifactMismatch, match="container|no GPU"):
            options = EngineOptions("tensorrt", "bfloat16", recipe=Recipe("float16"))
            convert(checkpoint("mistral-clip-8f"), tmp_path / "out", options=options)
        assert not (tmp_path / "out").exists()


def test_media_tokens_and_language_model_have_one_type(tmp_path):
    options = EngineOptions("tensorrt", "bfloat16", recipe=Recipe("bfloat16"))
    with pytest.raises(InvalidRequest, match="its media tokens are float16"):
        describe(checkpoint("mistral-clip-8f"), tmp_path / "out", None, None, options)


@pytest.mark.parametrize("variant", ["mixtral-clip-8f", "av-qwen2-siglip"])
def test_a_dry_run_prints_every_command(variant, tmp_path):
    tp = 2
    told = describe(
        checkpoint(variant),
        tmp_path / "out",
        None,
        None,
        EngineOptions("tensorrt", "float16", recipe=Recipe("float16", tp=tp)),
    )
    for part in (
        "convert_checkpoint.py",
        "trtllm-build",
        "profile 1",
        "mpirun",
        "config.pbtxt",
        "prompt_table_extra_ids",
    ):
        assert part in told, part
    assert ("audio_encoder" in told) == (variant == "av-qwen2-siglip")
    assert "${" not in told and not (tmp_path / "out").exists()
