"""TensorRT engines of tiny and real-size encoders against PyTorch; needs the pinned container."""

import numpy as np
import pytest
import torch

from conftest import checkpoint
from real_size.measure import random_sources
from videollama_converters.engine_options import encoder_dtype
from videollama_converters.export.graph_specs import ENGINE_GRAPHS, example_inputs, graph_sources
from videollama_converters.export.graphs import build_module, export_graph
from videollama_converters.tensorrt.build import build_engine
from videollama_core.checkpoint.fill import fill
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.checkpoint.read_config import published_config
from videollama_core.engines.bundle import Bundle, engine_path
from videollama_core.engines.media_encoder import MediaEncoder
from videollama_core.engines.specs import graphs_of
from videollama_core.engines.tensorrt_encoders import TensorRtEngine, describe_machine
from videollama_core.engines.torch_device import pick_dtype

pytest.importorskip("tensorrt", reason="TensorRT is not installed: run in the pinned container (docker/server)")
TINY = ("mistral-clip-8f", "qwen2-siglip-16f", "av-qwen2-siglip")
REAL = ("VideoLLaMA2-7B", "VideoLLaMA2.1-7B-AV")


def build(graph, config, sources, folder):
    """Its engine, where a bundle has it."""
    path, engine = folder / f"{graph.name}.onnx", folder / engine_path(graph.name)
    export_graph(graph, config, sources, path, lambda: None, pick_dtype(encoder_dtype(graph, "bfloat16")))
    build_engine(graph, config, path, engine, folder / "timing", print)
    return engine


def check(graph, config, sources, folder):
    engine = build(graph, config, sources, folder)
    module = build_module(graph, config).to_empty(device="cpu")
    fill(module, sources, graph.name).cuda()
    inputs = tuple(value.cuda() for value in example_inputs(graph, config))
    run = TensorRtEngine(engine, graph, describe_machine()).execution()
    with torch.inference_mode():
        wanted, computed = module(*inputs).float().flatten(), run(*inputs).float().flatten()
    cosine = float(torch.nn.functional.cosine_similarity(computed, wanted, dim=0))
    print(f"{graph.name}: cosine {cosine:.6f}, largest difference {float((computed - wanted).abs().max()):.4f}")
    assert np.isfinite(cosine) and cosine >= 0.999


@pytest.mark.parametrize("variant", TINY)
def test_tiny_engines(variant, tmp_path):
    parts = open_checkpoint(checkpoint(variant))
    for graph in ENGINE_GRAPHS:
        if graph in graphs_of(parts.config):
            check(graph, parts.config, graph_sources(graph, parts), tmp_path)


@pytest.mark.parametrize("name", REAL)
def test_real_size_engines(name, tmp_path):
    config = published_config(name)
    for graph in ENGINE_GRAPHS:
        if graph in graphs_of(config):
            check(graph, config, random_sources(build_module(graph, config), torch.float32), tmp_path)


@pytest.mark.parametrize("variant", TINY)
def test_recorded_shapes_take_turns(variant, tmp_path):
    """A picture, a video and (with an audio tower) an audio file, each recorded at its second call and replayed in
    between the others.
    """
    parts, random = open_checkpoint(checkpoint(variant)), np.random.default_rng(0)
    config = parts.config
    for graph in ENGINE_GRAPHS:
        if graph in graphs_of(config):
            build(graph, config, graph_sources(graph, parts), tmp_path)
    encoder = MediaEncoder(Bundle(tmp_path, config, {"engine": "tensorrt", "media_token_memory": "gpu"}))
    size = config.pixels.size
    media = [(random.integers(0, 256, (frames, size, size, 3), np.uint8), None) for frames in (1, config.num_frames)]
    if config.audio:
        sound = random.normal(size=(config.audio.rows, config.audio.bins)).astype(np.float32)
        media += [(media[0][0][:0], sound), (media[1][0], sound)]
    first = [encoder.encode(*each) for each in media]
    for _ in range(4):
        for each, wanted in zip(media, first, strict=True):
            assert np.abs(encoder.encode(*each) - wanted).max() <= 1e-2 * np.abs(wanted).max()
    tables = [encoder.encode_media(*each)[0] for each in media]
    for table, wanted in zip(tables, first, strict=True):  # none of them was written over by a later one
        assert table.is_cuda and np.abs(table.cpu().numpy() - wanted).max() <= 1e-2 * np.abs(wanted).max()
