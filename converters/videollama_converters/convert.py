"""The whole conversion of one checkpoint, in order."""

import hashlib
import logging
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

from videollama_converters import assemble as assembling
from videollama_converters import build_tensorrt, build_tensorrt_rtx
from videollama_converters.build_tensorrt import ENGINE_GRAPHS, build_engine
from videollama_converters.build_tensorrt_rtx import write_engine
from videollama_converters.code_hash import code_hash
from videollama_converters.compare import compare
from videollama_converters.encoder_weights import encoder_sources, write_encoder_weights
from videollama_converters.engine_options import EngineOptions, encoder_dtype
from videollama_converters.export_onnx import export_graph, float_pixels, unchanged
from videollama_converters.fp8 import calibrate, quantize
from videollama_converters.progress import Progress, SilentProgress
from videollama_converters.split_language_model import split_language_model
from videollama_converters.steps import BundleWriter, Step, files_below, sha256, write_json
from videollama_converters.tensorrt_check import check_graphs
from videollama_converters.tensorrt_llm import CALIBRATION_FILE
from videollama_core.checkpoint.parts import CheckpointParts, open_checkpoint
from videollama_core.checkpoint.shards import Sources
from videollama_core.checkpoint.tokenizer_files import TOKENIZER_FILES
from videollama_core.engines.bundle import (
    ENCODER_WEIGHTS,
    FORMAT,
    LANGUAGE_ENGINE,
    LANGUAGE_FOLDER,
    REPOSITORY,
    engine_path,
    graph_path,
)
from videollama_core.engines.specs import AUDIO_ENCODER, CONNECTOR, DECODER, EMBEDDING, VISION_ENCODER, Graph, graphs_of
from videollama_core.engines.tensorrt_encoders import describe_machine
from videollama_core.engines.tensorrt_rtx import rtx_version
from videollama_core.engines.torch_device import pick_dtype
from videollama_core.model.config import AUDIO_KINDS
from videollama_core.protocol.contract import MEDIA_KINDS
from videollama_core.protocol.errors import ArtifactMismatch

logger = logging.getLogger(__name__)


def convert(
    checkpoint: Path,
    out: Path,
    tower: Path | None = None,
    base: Path | None = None,
    progress: Progress = SilentProgress(),
    options: EngineOptions = EngineOptions(),
    origin: Mapping[str, str] | None = None,
) -> Path:
    """Convert a published checkpoint folder into a bundle (videollama_core/engines/bundle.py).

    Args:
        tower: folder of the vision tower; needed when it is not near the checkpoint and not a published one.
        base: folder of the base language model, for Base folders and adapters.
        options: what runs the converted parts.
        origin: "hub id@commit" of the parts (checkpoint, tower, base) that were fetched from the hub.
    Returns: the bundle's folder.
    Raises: CheckpointMismatch, ParityFailed, ArtifactMismatch, OSError when the folder cannot be written.
    """
    parts = open_checkpoint(checkpoint, tower, base)
    config = parts.config
    origin = dict(origin or {})
    options.check(config)
    if options.engine in BUILDERS:  # before hours of work, not after
        check_graphs(config, options)
    machine = BUILDERS[options.engine].machine() if options.engine in BUILDERS else {}
    with BundleWriter(out).locked() as writer:
        source = _read_source(parts, progress)
        for step in plan_steps(parts, source, out, progress, options, machine):
            progress.start(step.name, _work(step, parts))
            reused = writer.is_valid(step)
            if not reused:
                writer.make(step)
            progress.done(reused)
        writer.write_manifest(
            {
                "format": FORMAT,
                "name": origin["checkpoint"].split("@")[0] if "checkpoint" in origin else checkpoint.resolve().name,
                "model": config.to_dict(),
                "media_tokens": {
                    kind: config.tokens_of(kind) for kind in MEDIA_KINDS if config.audio or kind not in AUDIO_KINDS
                },
                "max_seq_len": options.positions(config),
                "engine": options.engine,
                "llm_engine": options.llm_engine,
                "dtype": options.dtype,
                "slots": int(options.parameters().get("max_num_sequences", 0)),
                "world_size": options.recipe.world_size if options.engine == "tensorrt" else 0,
                "media_token_memory": options.media_token_memory,
                "pool_bytes": options.pool_bytes(config),
                "versions": {package: metadata.version(package) for package in ("torch", "onnx", "onnxruntime")},
                "origin": origin,
                "source": source,
                "files": writer.files(),
            }
        )
    return out


def graph_sources(graph: Graph, parts: CheckpointParts) -> Sources:
    """Readers of a graph's parameters."""
    if graph is VISION_ENCODER:
        return parts.vision_sources()
    if graph is CONNECTOR:
        return parts.connector_sources()
    if graph is AUDIO_ENCODER:
        return parts.audio_sources()
    sources = parts.language_sources()
    if graph is EMBEDDING:
        return {"model.embed_tokens.weight": sources["model.embed_tokens.weight"]}
    return sources


def plan_steps(
    parts: CheckpointParts,
    source: dict[str, str],
    out: Path,
    progress: Progress,
    options: EngineOptions,
    machine: dict[str, str],
) -> list[Step]:
    """Args: machine: what TensorRT's engines are bound to (describe_machine); {} where it builds none."""
    code = code_hash(__name__)
    exports = [
        Step(
            graph.name,
            {"source": source, "code": code, "format": FORMAT},
            (graph_path(graph.name), graph_path(graph.name) + ".data"),
            partial(_export, graph, parts, progress.advance),
        )
        for graph in graphs_of(parts.config)
    ]
    inputs = {"source": source, "code": code, "format": FORMAT}
    compared = Step(
        "parity",
        inputs,
        ("parity.json",),
        lambda to: _compare_all(parts, out, to / "parity.json", progress.advance),
    )
    weights = Step(
        "encoder weights",
        inputs | {"dtype": options.dtype},
        (ENCODER_WEIGHTS,),
        lambda to: write_encoder_weights(parts, to / ENCODER_WEIGHTS, options.dtype, progress.advance),
    )
    parts_of_engine = {
        "onnx": [*exports, compared],
        "torch": [weights],
        "tensorrt": tensorrt_steps(parts, inputs, out, progress, options, machine),
        "tensorrt-rtx": tensorrt_steps(parts, inputs, out, progress, options, machine),
    }
    return [
        *parts_of_engine[options.engine],
        Step(
            "language model",
            inputs,
            (LANGUAGE_FOLDER,),
            lambda to: split_language_model(parts, to / LANGUAGE_FOLDER, progress.advance),
        ),
        Step(
            "model repository",
            {"code": code, "stages": _tree_hash(assembling.tracked_repository()), "options": options.of_repository()},
            (REPOSITORY,),
            lambda to: assembling.assemble(to / REPOSITORY, options, parts.config, out),
        ),
        *language_engine_steps(parts, inputs | {"machine": machine}, out, options),
    ]


def tensorrt_steps(
    parts: CheckpointParts,
    inputs: dict[str, object],
    out: Path,
    progress: Progress,
    options: EngineOptions,
    machine: dict[str, str],
) -> list[Step]:
    """Typed graphs of the encoders, and their engines."""
    if options.engine not in BUILDERS:
        return []
    builder, found = BUILDERS[options.engine], []
    for graph in ENGINE_GRAPHS:
        if graph not in graphs_of(parts.config):
            continue
        dtype = encoder_dtype(graph, options.dtype)
        media = options.fp8_media if graph is VISION_ENCODER else ()
        typed = inputs | {"dtype": dtype, "fp8": [sha256(path) for path in media]}
        found.append(
            Step(
                f"{graph.name} graph",
                typed,
                (graph_path(graph.name), graph_path(graph.name) + ".data"),
                partial(_export_typed, graph, parts, progress.advance, pick_dtype(dtype), media),
            )
        )
        engine = engine_path(graph.name)
        found.append(
            Step(
                f"{graph.name} engine",
                typed | {"machine": machine, "builder": sha256(Path(str(builder.module.__file__)))},
                (engine, str(Path(engine).with_suffix(".json"))),
                partial(builder.build, graph, parts, out, bool(media)),
            )
        )
    return found


def _export_typed(
    graph: Graph,
    parts: CheckpointParts,
    tick: Callable[[], None],
    dtype: torch.dtype,
    fp8_media: tuple[Path, ...],
    to: Path,
) -> None:
    path = to / graph_path(graph.name)
    edit = partial(quantize, scales=calibrate(parts, fp8_media)) if fp8_media else unchanged
    export_graph(graph, parts.config, graph_sources(graph, parts), path, tick, dtype, edit)


def _build_engine(graph: Graph, parts: CheckpointParts, out: Path, is_fp8: bool, to: Path) -> None:
    onnx, engine = out / graph_path(graph.name), to / engine_path(graph.name)
    build_engine(graph, parts.config, onnx, engine, out / "engines/timing", logger.info)


def _build_portable_engine(graph: Graph, parts: CheckpointParts, out: Path, is_fp8: bool, to: Path) -> None:
    write_engine(graph, parts.config, out / graph_path(graph.name), to / engine_path(graph.name), is_fp8)


@dataclass(frozen=True)
class Builder:
    """Of the engines of one `--engine`."""

    module: ModuleType  # whose code decides what an engine is
    machine: Callable[[], dict[str, str]]  # what an engine is bound to; raises ArtifactMismatch where none can be built
    build: Callable[[Graph, CheckpointParts, Path, bool, Path], None]


BUILDERS = {
    "tensorrt": Builder(build_tensorrt, describe_machine, _build_engine),
    "tensorrt-rtx": Builder(build_tensorrt_rtx, lambda: {"tensorrt_rtx": rtx_version()}, _build_portable_engine),
}


def language_engine_steps(
    parts: CheckpointParts, inputs: dict[str, object], out: Path, options: EngineOptions
) -> list[Step]:
    """TensorRT-LLM's own commands, where it runs the language model."""
    if options.engine != "tensorrt":
        return []

    def run(to: Path) -> None:
        work = to / Path(LANGUAGE_ENGINE).parent
        work.mkdir(parents=True)
        for words in options.recipe.commands(parts.config, out / LANGUAGE_FOLDER, work):
            run_command(words)
        shutil.rmtree(work / "checkpoint")  # as large as the model, and only the engine is served

    texts = options.recipe.calibration and sha256(Path(options.recipe.calibration) / CALIBRATION_FILE)
    commands = options.recipe.commands(parts.config, Path("llm"), Path("engine"))
    needs = inputs | {"commands": commands, "calibration": texts}
    return [Step("language model engine", needs, (LANGUAGE_ENGINE,), run)]


def run_command(words: list[str]) -> None:
    """Raises: ArtifactMismatch when the command is not there or fails; its own output is the operator's to read."""
    try:
        code = subprocess.run(words, check=False).returncode
    except FileNotFoundError as error:
        raise ArtifactMismatch(
            f"{words[0]} is not on this machine: convert in the pinned container (docker/), or print the commands with --dry-run"
        ) from error
    if code:
        raise ArtifactMismatch(f"{shlex.join(words)} ended with code {code}; its output above says why")


def _work(step: Step, parts: CheckpointParts) -> int:
    counts = {graph.name: len(graph_sources(graph, parts)) for graph in graphs_of(parts.config)}
    counts.update({"language model": len(parts.language_sources()), "parity": len(graphs_of(parts.config))})
    counts["encoder weights"] = len(encoder_sources(parts))
    return counts.get(step.name, 1)


def _export(graph: Graph, parts: CheckpointParts, tick: Callable[[], None], folder: Path) -> None:
    sources = graph_sources(graph, parts)
    if parts.config.language.tied and graph is DECODER:
        sources["lm_head.weight"] = sources["model.embed_tokens.weight"]
    edit = float_pixels if graph is VISION_ENCODER else unchanged
    export_graph(graph, parts.config, sources, folder / graph_path(graph.name), tick, edit=edit)


def _compare_all(parts: CheckpointParts, out: Path, path: Path, tick: Callable[[], None]) -> None:
    report = []
    for graph in graphs_of(parts.config):
        report.append(compare(graph, parts.config, graph_sources(graph, parts), out / graph_path(graph.name)).to_dict())
        tick()
    write_json(path, report)


def _read_source(parts: CheckpointParts, progress: Progress) -> dict[str, str]:
    """Check that the checkpoint is complete, and hash every file that the result depends on, named by its part.

    The folder's own name would not do: in the hub's cache it is the commit, which changes with every note to a model card.
    """
    folders = parts.folders
    places = [("checkpoint", folders.checkpoint), ("base", folders.language)]
    places += [("tower", folders.tower)] if folders.tower else []
    small = [folders.checkpoint / name for name in ("config.json", "adapter_config.json")]
    small += [folders.language / name for name in ("config.json", *TOKENIZER_FILES)]
    tower = files_below(folders.tower) if folders.tower else []
    files = [path for path in dict.fromkeys((*small, *parts.paths(), *tower)) if path.is_file()]
    progress.start("reading the checkpoint", len(files))
    parts.check()
    hashes = {}
    for path in files:
        found = (place for place in places if path.is_relative_to(place[1]))
        part, folder = next(found, (path.parent.name, path.parent))
        hashes[f"{part}/{path.relative_to(folder)}"] = sha256(path)
        progress.advance()
    progress.done(reused=False)
    return hashes


def _tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in files_below(folder):
        if "__pycache__" not in path.parts:
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
