"""A vision tower whose products are in fp8: the graph that TensorRT will build, run by ONNX Runtime."""

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from conftest import MEDIA, checkpoint
from videollama_converters.cli import convert as command
from videollama_converters.engine_options import EngineOptions
from videollama_converters.export.graph_specs import graph_sources
from videollama_converters.export.graphs import export_graph
from videollama_converters.tensorrt.fp8 import LARGEST, calibrate, quantize
from videollama_converters.tensorrt.operators import check_graph
from videollama_converters.tensorrt_llm.recipe import Recipe
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.specs import VISION_ENCODER
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.protocol.errors import InvalidRequest

SEEN = (MEDIA / "plain_96x64.mp4", MEDIA / "desert.jpg")
# Three bits of mantissa: 6 % per product, which an ordinary sum averages. Random weights average worse than trained ones.
COSINE = {"qwen2-siglip-16f": 0.99, "mistral-clip-8f": 0.99, "tiny-shapes": 0.999}


def run(path, frames):
    options = onnxruntime.SessionOptions()
    # Its own rewriting takes every DequantizeLinear for an integer's, and then refuses the type.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options)
    return session.run(None, {"frames": frames})[0].astype(np.float32).ravel()


@pytest.mark.parametrize("variant", COSINE)
def test_a_tower_in_fp8_sees_nearly_the_same(variant, tmp_path):
    parts = open_checkpoint(checkpoint(variant))
    frames = prepare("video", [(MEDIA / "vfr_80x60.mp4").read_bytes()], Segment(), parts.config).frames
    with torch.inference_mode():
        wanted = parts.vision_encoder()(torch.from_numpy(frames)).numpy().ravel()
    edit = partial(quantize, scales=calibrate(parts, SEEN))
    for dtype in (torch.float32, torch.float16):
        path = tmp_path / f"{dtype}.onnx"
        export_graph(VISION_ENCODER, parts.config, graph_sources(VISION_ENCODER, parts), path, int, dtype, edit)
        features = run(path, frames)
        cosine = float(features @ wanted / np.linalg.norm(features) / np.linalg.norm(wanted))
        assert COSINE[variant] < cosine < 0.99999


def test_every_product_with_a_weight_is_in_fp8_and_the_graph_holds_the_rules(tmp_path):
    parts = open_checkpoint(checkpoint("qwen2-siglip-16f"))
    scales = calibrate(parts, SEEN)
    path = tmp_path / "tower.onnx"
    sources = graph_sources(VISION_ENCODER, parts)
    export_graph(VISION_ENCODER, parts.config, sources, path, int, torch.bfloat16, partial(quantize, scales=scales))
    assert check_graph(path) == []
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    made_by = {output: node for node in nodes for output in node.output}
    products = [node for node in nodes if node.op_type == "MatMul"]
    pairs = sum(made_by[node.input[0]].op_type == "DequantizeLinear" for node in products)
    assert pairs == len(scales) == 6 * parts.config.vision.used_layers
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 2 * len(scales)
    name = "encoder.layers.0.mlp.fc1.weight"
    assert abs(scales[name].weights * LARGEST - float(sources[name]().float().abs().max())) < 1e-6


def test_fp8_is_refused_where_it_cannot_be():
    with pytest.raises(InvalidRequest, match="fp8 needs TensorRT; engine torch supports bfloat16"):
        EngineOptions("torch", "bfloat16", fp8_media=SEEN)
    config = open_checkpoint(checkpoint("qwen2-siglip-16f")).config
    ampere = EngineOptions("tensorrt", "bfloat16", recipe=Recipe(gpu="A100-80", dtype="float16"), fp8_media=SEEN)
    with pytest.raises(InvalidRequest, match=r"needs compute capability 8.9, and A100-80 has 8.0"):
        ampere.check(config)
    gone = EngineOptions("tensorrt", "bfloat16", recipe=Recipe(dtype="float16"), fp8_media=(MEDIA / "gone.mp4",))
    with pytest.raises(InvalidRequest, match=r"gone.mp4 is not a file; --fp8-tower needs videos or images"):
        gone.check(config)


def test_a_dry_run_says_what_will_be_in_fp8(tmp_path):
    words = [checkpoint("qwen2-siglip-16f"), "--out", tmp_path / "out", "--engine", "tensorrt", "--dry-run"]
    result = CliRunner().invoke(command, [*map(str, words), "--fp8-tower", str(SEEN[0])])
    assert result.exit_code == 0, result.output
    assert "vision_encoder.onnx in bfloat16 (products in fp8, calibrated on" in result.output
