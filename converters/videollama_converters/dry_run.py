"""Describes what a conversion for TensorRT would do, command by command."""

import shlex
from pathlib import Path

from videollama_converters.engine_options import EngineOptions, encoder_dtype
from videollama_converters.export.graph_specs import ENGINE_GRAPHS, profiles
from videollama_converters.tensorrt_llm.config import render_config
from videollama_converters.tensorrt_llm.recipe import script
from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.engines.bundle import LANGUAGE_ENGINE, LANGUAGE_FOLDER, REPOSITORY, engine_path, graph_path
from videollama_core.engines.specs import VISION_ENCODER, graphs_of
from videollama_core.protocol.errors import InvalidRequest
from videollama_server.installation import ADDRESS_VARIABLE
from videollama_server.multi_gpu import with_ranks


def describe(checkpoint: Path, out: Path, tower: Path | None, base: Path | None, options: EngineOptions) -> str:
    """The description, as a commented shell script. Raises: InvalidRequest, CheckpointMismatch, as the conversion would."""
    if not options.language.is_backend:
        raise InvalidRequest(
            f"--dry-run is for --engine tensorrt; the conversion for {options.engine} runs no external commands"
        )
    config = open_checkpoint(checkpoint, tower, base).config
    options.check(config)
    lines = [f"# {checkpoint} -> {out}"]
    for graph in ENGINE_GRAPHS:
        if graph in graphs_of(config):
            dtype = encoder_dtype(graph, options.dtype)
            fp8 = options.fp8_media if graph is VISION_ENCODER else ()
            products = f" (products in fp8, calibrated on {', '.join(map(str, fp8))})" if fp8 else ""
            lines.append(
                f"# {graph_path(graph.name)} in {dtype}{products}, strongly typed -> {engine_path(graph.name)}"
            )
            for number, shapes in enumerate(profiles(graph, config)):
                ranges = ", ".join(f"{name} {' / '.join(map(str, sizes))}" for name, sizes in shapes.items())
                lines.append(f"#   profile {number}: {ranges}")
    work = out / Path(LANGUAGE_ENGINE).parent
    lines.append(script(options.recipe, config, out / LANGUAGE_FOLDER, work))
    lines.append(f"# {REPOSITORY}/tensorrt_llm/config.pbtxt")
    root = out.resolve()
    config_text = render_config(options.recipe, config, str(root / LANGUAGE_ENGINE), str(root / LANGUAGE_FOLDER))
    lines += [f"#   {line}" for line in config_text.splitlines()]
    server = [
        "tritonserver",
        f"--model-repository={root / REPOSITORY}",
        "--model-control-mode=explicit",
        "--load-model=*",
    ]
    ranks = with_ranks(server, options.recipe.world_size, options.pool_bytes(config))
    stages = f"{ADDRESS_VARIABLE}=unix:RUN/grpc:1"  # for the entry's calls, as vl2 serve sets it
    lines.append(f"vl2 serve {out}")
    lines.append(f"# runs, on a copy of the repository with absolute paths: {stages} {shlex.join(ranks)}")
    return "\n".join(lines)
