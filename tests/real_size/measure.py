"""One conversion at real size with random weights, in a process of its own: prints a JSON line with time and peak memory.

    python tests/real_size/measure.py graph VideoLLaMA2.1-7B-16F vision_encoder FOLDER
    python tests/real_size/measure.py build VideoLLaMA2.1-7B-16F vision_encoder FOLDER fp8    # NVIDIA's builder; fp8 or nothing
    python tests/real_size/measure.py split VideoLLaMA2-72B 4 FOLDER        # 4 of its 80 layers, or all with 0

Weights are drawn as they are asked for, so that no checkpoint has to be there.
"""

import json
import resource
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from build_log import BuildLog
from videollama_converters.engine_options import encoder_dtype
from videollama_converters.export.graph_specs import example_inputs
from videollama_converters.export.graphs import build_module, export_graph
from videollama_converters.tensorrt.build_rtx import FP8_TARGETS, TARGETS, build
from videollama_converters.tensorrt.fp8 import quantize, unit_scales
from videollama_converters.tensorrt.operators import check_graph
from videollama_core.checkpoint.fill import fill
from videollama_core.checkpoint.read_config import published_config
from videollama_core.checkpoint.shards import SHARD_BYTES, write_shards
from videollama_core.engines.onnx_runtime import OnnxEngine
from videollama_core.engines.specs import AUDIO_ENCODER, GRAPHS, VISION_ENCODER, Graph
from videollama_core.engines.torch_device import pick_dtype
from videollama_core.model.config import ModelConfig


def draw(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The same values whenever a name is asked for; about as large as trained ones."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    if len(shape) < 2:
        return torch.ones(shape, dtype=dtype) if "norm" in name or "bn" in name else torch.zeros(shape, dtype=dtype)
    tensor = torch.empty(shape, dtype=dtype)
    return tensor.normal_(0.0, float(np.prod(shape[1:])) ** -0.5, generator=generator)


def random_sources(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, partial[Tensor]]:
    return {name: partial(draw, name, value.shape, dtype) for name, value in module.state_dict().items()}


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure_graph(checkpoint: str, name: str, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    """Export, check, and compare one case with PyTorch."""
    config = published_config(checkpoint)
    graph = next(graph for graph in GRAPHS if graph.name == name)
    module = build_module(graph, config)
    sources = random_sources(module, torch.float32)
    path, began = folder / f"{name}.onnx", time.monotonic()
    export_graph(graph, config, sources, path, lambda: None, dtype)
    seconds, exported = time.monotonic() - began, peak_gigabytes()
    onnx.checker.check_model(str(path))
    violations = [str(violation) for violation in check_graph(path)]
    inputs = example_inputs(graph, config)
    computed = OnnxEngine(path, graph.inputs, graph.outputs).run(
        {
            key: value.to(dtype).numpy() if value.is_floating_point() else value.numpy()
            for key, value in zip(graph.inputs, inputs, strict=True)
        }
    )[graph.outputs[0]]
    module = module.to_empty(device="cpu")
    fill(module, sources, name)
    with torch.inference_mode():
        wanted = module(*inputs).float().numpy()
    return {
        "graph": name,
        "checkpoint": checkpoint,
        "gigabytes": round(sum(file.stat().st_size for file in folder.iterdir()) / 1e9, 2),
        "export_seconds": round(seconds, 1),
        "export_peak_gigabytes": round(exported, 2),
        "difference": float(np.abs(computed - wanted).max() / max(1.0, float(np.abs(wanted).max()))),
        "violations": violations,
    }


def measure_build(checkpoint: str, name: str, folder: Path, fp8: bool) -> dict[str, object]:
    """One engine in the types of --engine tensorrt, by NVIDIA's builder on this machine's CPU."""
    config = published_config(checkpoint)
    graph = next(graph for graph in GRAPHS if graph.name == name)
    module = build_module(graph, config)
    dtype, path = encoder_dtype(graph, "bfloat16"), folder / f"{name}.onnx"
    edit = partial(quantize, scales=unit_scales(module)) if fp8 else lambda model: None
    export_graph(graph, config, random_sources(module, torch.float32), path, lambda: None, pick_dtype(dtype), edit)
    log: list[str] = []
    began = time.monotonic()
    engine = build(graph, config, path, FP8_TARGETS if fp8 else TARGETS, log.append)
    built = BuildLog.read(log)
    return {
        "graph": name,
        "checkpoint": checkpoint,
        "dtype": "fp8" if fp8 else dtype,
        "layers": layers_of(graph, config),
        "seconds": round(time.monotonic() - began, 1),
        "engine_megabytes": round(len(engine) / 1e6),
        "peak_gigabytes": round(peak_gigabytes(), 1),
        "attention": built.attention,
        "scratch_megabytes": [round(size / 1e6, 1) for size in built.scratch_bytes],
        "fp8_products": len(built.fp8_products),
    }


def layers_of(graph: Graph, config: ModelConfig) -> int:
    """With attention."""
    if graph is VISION_ENCODER:
        return config.vision.used_layers
    return config.audio.layers if graph is AUDIO_ENCODER and config.audio else 0


def measure_split(checkpoint: str, layers: int, folder: Path) -> dict[str, object]:
    """The language model's tensors through the writer of `llm/`."""
    from videollama_core.model.decoder import Decoder

    language = published_config(checkpoint).language
    if layers:
        language = replace(language, layers=layers)
    with torch.device("meta"):
        decoder = Decoder(language)
    before, began = peak_gigabytes(), time.monotonic()
    elements = {name: value.numel() for name, value in decoder.state_dict().items()}
    write_shards(random_sources(decoder, torch.bfloat16), folder, elements=elements)
    files = sorted(folder.glob("*.safetensors"))
    largest = max(file.stat().st_size for file in files)
    return {
        "checkpoint": checkpoint,
        "layers": language.layers,
        "gigabytes": round(sum(file.stat().st_size for file in files) / 1e9, 2),
        "shards": len(files),
        "largest_shard_gigabytes": round(largest / 1e9, 2),
        "seconds": round(time.monotonic() - began, 1),
        "peak_gigabytes": round(peak_gigabytes(), 2),
        "peak_above_start_gigabytes": round(peak_gigabytes() - before, 2),
        "allowed_gigabytes": round((max(largest, SHARD_BYTES) + 2**30) / 1e9, 2),
    }


def main() -> None:
    kind, checkpoint, what, folder = sys.argv[1:5]
    Path(folder).mkdir(parents=True, exist_ok=True)
    if kind == "graph":
        figures = measure_graph(checkpoint, what, Path(folder))
    elif kind == "build":
        figures = measure_build(checkpoint, what, Path(folder), "fp8" in sys.argv[5:])
    else:
        figures = measure_split(checkpoint, int(what), Path(folder))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
