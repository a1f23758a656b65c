"""NVIDIA's own parser and builder, which need no GPU, take every graph that `--engine tensorrt` writes.

Graphs of equal structure are built once: fine-tunes of one family differ in their values alone.
"""

import subprocess
import venv

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

from build_log import BuildLog
from conftest import MEDIA, VARIANTS, checkpoint
from videollama_converters.convert import convert
from videollama_converters.engine_options import EngineOptions, encoder_dtype
from videollama_converters.export import tidy_graph
from videollama_converters.export.graph_specs import ENGINE_GRAPHS, SPECS, example_inputs, profiles
from videollama_converters.tensorrt import check
from videollama_converters.tensorrt.build import tensor_types
from videollama_converters.tensorrt.build_rtx import FP8_TARGETS, build, parse
from videollama_converters.tensorrt.fp8 import calibrate, quantize
from videollama_converters.tensorrt.operators import check_graph
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.onnx_runtime import OnnxEngine
from videollama_core.engines.specs import CONNECTOR, VISION_ENCODER, graphs_of
from videollama_core.engines.table import ENCODER_ENGINES
from videollama_core.engines.torch_device import pick_dtype
from videollama_core.protocol.errors import ArtifactMismatch

pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx has wheels for Linux on x86-64 and Windows only")
OLDER = "tensorrt-rtx-cu13==1.4.0.76"
PICTURE = MEDIA / "desert.jpg"


def structure(graph, config):
    """What decides a graph, apart from its weights."""
    return graph.name, SPECS[graph].decided_by(config)


def first_of_its_structure(variant, graph):
    wanted = structure(graph, open_checkpoint(checkpoint(variant)).config)
    for other in VARIANTS:
        config = open_checkpoint(checkpoint(other)).config
        if graph in graphs_of(config) and structure(graph, config) == wanted:
            return other
    raise AssertionError(variant)


def graph_file(variant, graph, dtype, typed_graph):
    """As the conversion writes it: a tower takes uint8 in every type, where ONNX Runtime's takes float32."""
    path = typed_graph(first_of_its_structure(variant, graph), graph, pick_dtype(dtype))
    assert graph is not VISION_ENCODER or tensor_types(path)[graph.inputs[0]] == "uint8"
    return path


def in_fp8(path, variant, folder):
    """The same tower with its products in fp8."""
    model = ir.load(path)
    quantize(model, calibrate(open_checkpoint(checkpoint(variant)), [PICTURE]))
    target = folder / f"{path.stem}-fp8.onnx"
    ir.save(model, target, external_data=target.name + ".data")
    return target


def check_fp8(path, config):
    """Every linear layer's product is built in fp8, for the GPUs that have it."""
    assert not check_graph(path)
    log: list[str] = []
    assert len(build(VISION_ENCODER, config, path, FP8_TARGETS, log.append)) > 0
    assert len(BuildLog.read(log).fp8_products) == 6 * config.vision.used_layers


@pytest.fixture(scope="session")
def built():
    """(structure, profiles, dtype) of everything built in this session."""
    return set()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_graph_is_parsed_and_built(variant, typed_graph, built, tmp_path):
    config = open_checkpoint(checkpoint(variant)).config
    for graph in ENGINE_GRAPHS:
        if graph not in graphs_of(config):
            continue
        for dtype in sorted({encoder_dtype(graph, dtype) for dtype in ENCODER_ENGINES["tensorrt"].dtypes}):
            key = (structure(graph, config), str(profiles(graph, config)), dtype)
            if key in built:
                continue
            path = graph_file(variant, graph, dtype, typed_graph)
            assert not check_graph(path)
            log: list[str] = []
            assert len(build(graph, config, path, log=log.append)) > 0
            if graph is VISION_ENCODER:
                fused = config.vision.used_layers if dtype != "float32" else 0  # there is no such kernel in float32
                assert BuildLog.read(log).attention == [fused, fused]
                check_fp8(in_fp8(path, first_of_its_structure(variant, graph), tmp_path), config)
            built.add(key)


# --- graphs as the exporter writes them, which must be refused --------------------------------------------------------------


def with_computed_axes(model):
    """Computes the axes of each mean as the exporter does: a constant through Reshape."""
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name.endswith(".axes")}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            axes, name = stored[node.input[1]], node.output[0]
            nodes += [
                helper.make_node("Constant", [], [f"{name}.list"], value=numpy_helper.from_array(axes[None])),
                helper.make_node("Constant", [], [f"{name}.flat"], value_ints=[-1]),
                helper.make_node("Reshape", [f"{name}.list", f"{name}.flat"], [f"{name}.computed"]),
            ]
            node.input[1] = f"{name}.computed"
        nodes.append(node)
    replace_nodes(model, nodes)


def with_computed_biases(model):
    """Adds a bias of zeros, as long as its weights, to each convolution without one."""
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 2:
            name, weight = node.output[0], node.input[1]
            zero = helper.make_tensor("zero", kinds[weight], [], [0.0])
            nodes += [
                helper.make_node("Shape", [weight], [f"{name}.length"], start=0, end=1),
                helper.make_node("Constant", [], [f"{name}.zero"], value=zero),
                helper.make_node("Expand", [f"{name}.zero", f"{name}.length"], [f"{name}.bias"]),
            ]
            node.input.append(f"{name}.bias")
        nodes.append(node)
    replace_nodes(model, nodes)


def replace_nodes(model, nodes):
    assert len(nodes) > len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def refusal(path):
    """The findings of the fast check and of NVIDIA's parser."""
    reasons = [str(violation) for violation in check_graph(path)]
    try:
        parse(path)
    except ArtifactMismatch as error:
        reasons.append(str(error))
    return reasons


@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        (with_computed_axes, ("its axes are computed", "Axis input must")),
        (with_computed_biases, ("its bias is computed",)),  # this parser takes it; TensorRT 10.3 is reported not to
    ],
)
def test_a_fault_of_the_exporter_is_refused_and_its_repair_changes_no_bit(fault, reasons, bundle_of):
    bundle = Bundle.open(bundle_of("av-qwen2-siglip"))
    whole = bundle.graph(CONNECTOR.name)
    assert not refusal(whole)
    model = onnx.load(str(whole), load_external_data=False)
    fault(model)
    path = whole.with_name("faulty.onnx")  # beside the weights
    try:
        onnx.save(model, str(path))
        said = refusal(path)
        assert len({reason for reason in reasons if any(reason in line for line in said)}) == len(reasons), said
        inputs = {
            name: value.numpy()
            for name, value in zip(CONNECTOR.inputs, example_inputs(CONNECTOR, bundle.config), strict=True)
        }
        faulty, repaired = (
            OnnxEngine(each, CONNECTOR.inputs, CONNECTOR.outputs).run(inputs)[CONNECTOR.outputs[0]]
            for each in (path, whole)
        )
        assert np.array_equal(faulty, repaired)
    finally:
        path.unlink(missing_ok=True)


def test_a_conversion_runs_the_parser_first(tmp_path, monkeypatch):
    """Before it needs a GPU or reads a weight; graphs that pass the operator table can still be refused."""
    options = EngineOptions("tensorrt", "bfloat16", recipe=Recipe("float16"), fp8_media=(PICTURE,))
    monkeypatch.setattr(tidy_graph, "_store_axes", lambda node, graph: None)
    monkeypatch.setattr(check, "check_graph", lambda path: [])
    with pytest.raises(
        ArtifactMismatch, match=r"TensorRT-RTX \S+ refuses .*connector.onnx: ReduceMean .*Axis input must"
    ):
        convert(checkpoint("mistral-clip-8f"), tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # every graph of every variant is exported
def test_an_older_parser_accepts_the_graphs_too(typed_graph, tmp_path):
    """1.4.0.76, whose parser is close to TensorRT 10's, in an environment of its own."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", OLDER], check=True)
    paths = set()
    for variant in VARIANTS:
        for graph in graphs_of(open_checkpoint(checkpoint(variant)).config):
            for dtype in ENCODER_ENGINES["tensorrt"].dtypes if graph in ENGINE_GRAPHS else ():
                path = graph_file(variant, graph, encoder_dtype(graph, dtype), typed_graph)
                paths.add(path)
                if graph is VISION_ENCODER:
                    paths.add(in_fp8(path, first_of_its_structure(variant, graph), tmp_path))
    assert len(paths) >= 20
    code = """if True:
        import sys, tensorrt_rtx as trt
        logger = trt.Logger(trt.Logger.ERROR)
        for path in sys.argv[1:]:
            builder = trt.Builder(logger)
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            parser = trt.OnnxParser(network, logger)
            if not parser.parse_from_file(path):
                sys.exit(f"{path}: {parser.get_error(0)}")
        print(trt.__version__, len(sys.argv) - 1)
    """
    done = subprocess.run([python, "-c", code, *map(str, sorted(paths))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [OLDER.split("==")[1], str(len(paths))]


def test_fp8_is_refused_for_ampere(typed_graph, tmp_path):
    path = in_fp8(typed_graph("av-qwen2-siglip", VISION_ENCODER, torch.bfloat16), "av-qwen2-siglip", tmp_path)
    config = open_checkpoint(checkpoint("av-qwen2-siglip")).config
    with pytest.raises(ArtifactMismatch, match=r"cannot build .*-fp8.onnx: .*sm86.*fp8"):
        build(VISION_ENCODER, config, path, (8.6,))


def test_the_parsers_refusal_is_reported(tmp_path):
    value = helper.make_tensor_value_info
    node = helper.make_node("NonExistent", ["x"], ["y"])
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph([node], "g", [value("x", kind, [4])], [value("y", kind, [4])])
    path = tmp_path / "bad.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    with pytest.raises(ArtifactMismatch, match=r"the parser of TensorRT-RTX \S+ refuses .*bad.onnx: .*NonExistent"):
        parse(path)
