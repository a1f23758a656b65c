"""The conversion steps of each engine in videollama_core.engines.table.

A step's key has the hash of the modules that decide what it writes, so that a change elsewhere does not repeat it.
"""

import logging
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from videollama_converters.engine_options import EngineOptions, encoder_dtype
from videollama_converters.export.compare import INT8_TOLERANCE, TOLERANCE, compare
from videollama_converters.export.encoder_weights import encoder_sources, write_encoder_weights
from videollama_converters.export.graph_specs import ENGINE_GRAPHS, graph_sources
from videollama_converters.export.graphs import export_for_runtime
from videollama_converters.steps.bundle_writer import Step, sha256, write_json
from videollama_converters.steps.code_hash import code_hash
from videollama_converters.steps.progress import Progress
from videollama_converters.tensorrt.build import build_engine
from videollama_converters.tensorrt.build_rtx import write_engine
from videollama_converters.tensorrt.fp8 import export_typed
from videollama_converters.tensorrt_llm.recipe import CALIBRATION_FILE
from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.engines.bundle import (
    ENCODER_WEIGHTS,
    FORMAT,
    LANGUAGE_ENGINE,
    LANGUAGE_FOLDER,
    engine_path,
    graph_path,
)
from videollama_core.engines.specs import DECODER, VISION_ENCODER, Graph, graphs_of
from videollama_core.engines.tensorrt_encoders import describe_machine
from videollama_core.engines.tensorrt_rtx import rtx_version
from videollama_core.engines.torch_device import pick_dtype
from videollama_core.protocol.errors import ArtifactMismatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What all steps of one conversion share."""

    parts: CheckpointParts
    source: dict[str, str]  # hashes of the checkpoint's files
    out: Path
    progress: Progress
    options: EngineOptions
    machine: dict[str, str]  # what its engines are bound to; {} if nothing

    def inputs(self, *modules: str) -> dict[str, object]:
        """A step's inputs: the checkpoint, and the code of `modules` of this package. Raises: ModuleNotFoundError."""
        code = code_hash(*(f"{__package__}.{module}" for module in modules))
        return {"source": self.source, "code": code, "format": FORMAT}


def onnx_steps(of: Conversion) -> list[Step]:
    """Steps that write graphs for ONNX Runtime and compare them with the PyTorch modules."""
    steps = [
        Step(
            graph.name,
            of.inputs("export.graphs") | _weights(of, graph),
            (graph_path(graph.name), graph_path(graph.name) + ".data"),
            partial(export_for_runtime, graph, of.parts, of.progress.advance, bool(_weights(of, graph))),
            work=len(graph_sources(graph, of.parts)),
        )
        for graph in graphs_of(of.parts.config)
    ]
    work, needs = len(graphs_of(of.parts.config)), of.inputs("export.compare") | _weights(of, DECODER)
    return [*steps, Step("parity", needs, ("parity.json",), partial(_compare_all, of), work)]


def _weights(of: Conversion, graph: Graph) -> dict[str, object]:
    """Inputs of a step whose graph has quantized weights."""
    quantization = of.options.quantization if graph is DECODER else ""
    return {"quantization": quantization} if quantization else {}


def _compare_all(of: Conversion, to: Path) -> None:
    report, parts = [], of.parts
    for graph in graphs_of(parts.config):
        path, tolerance = of.out / graph_path(graph.name), INT8_TOLERANCE if _weights(of, graph) else TOLERANCE
        comparison = compare(graph, parts.config, graph_sources(graph, parts), path, tolerance)
        report.append(comparison.to_dict())
        of.progress.advance()
    write_json(to / "parity.json", report)


def torch_steps(of: Conversion) -> list[Step]:
    """The step that writes the encoders' weights to one file."""
    dtype = of.options.dtype
    return [
        Step(
            "encoder weights",
            of.inputs("export.encoder_weights") | {"dtype": dtype},
            (ENCODER_WEIGHTS,),
            lambda to: write_encoder_weights(of.parts, to / ENCODER_WEIGHTS, dtype, of.progress.advance),
            work=len(encoder_sources(of.parts)),
        )
    ]


def tensorrt_steps(builder: str, build: Callable[[Conversion, Graph, bool, Path], None], of: Conversion) -> list[Step]:
    """Steps that write the encoders' typed graphs and engines. Args: builder: the module whose code decides what `build` writes."""
    steps = []
    for graph in ENGINE_GRAPHS:
        if graph not in graphs_of(of.parts.config):
            continue
        dtype = encoder_dtype(graph, of.options.dtype)
        media = of.options.fp8_media if graph is VISION_ENCODER else ()
        typed = {"dtype": dtype, "fp8": [sha256(path) for path in media]}
        steps.append(
            Step(
                f"{graph.name} graph",
                of.inputs("tensorrt.fp8") | typed,
                (graph_path(graph.name), graph_path(graph.name) + ".data"),
                partial(export_typed, graph, of.parts, of.progress.advance, pick_dtype(dtype), media),
                work=len(graph_sources(graph, of.parts)),
            )
        )
        engine = engine_path(graph.name)
        steps.append(
            Step(
                f"{graph.name} engine",
                of.inputs("tensorrt.fp8", builder) | typed | {"machine": of.machine},
                (engine, str(Path(engine).with_suffix(".json"))),
                partial(build, of, graph, bool(media)),
            )
        )
    return steps


def _build(of: Conversion, graph: Graph, is_fp8: bool, to: Path) -> None:
    onnx, engine = of.out / graph_path(graph.name), to / engine_path(graph.name)
    build_engine(graph, of.parts.config, onnx, engine, of.out / "engines/timing", logger.info)


def _build_portable(of: Conversion, graph: Graph, is_fp8: bool, to: Path) -> None:
    write_engine(graph, of.parts.config, of.out / graph_path(graph.name), to / engine_path(graph.name), is_fp8)


def language_engine_steps(of: Conversion) -> list[Step]:
    """The step that runs TensorRT-LLM's own commands, if it runs the language model."""
    options, config, out = of.options, of.parts.config, of.out
    if not options.language.is_backend:
        return []

    def run(to: Path) -> None:
        work = to / Path(LANGUAGE_ENGINE).parent
        work.mkdir(parents=True)
        for words in options.recipe.commands(config, out / LANGUAGE_FOLDER, work):
            run_command(words)
        shutil.rmtree(work / "checkpoint")  # as large as the model, while only the engine is served

    needs = of.inputs("export.split_language_model", "tensorrt_llm.recipe") | {
        "machine": of.machine,
        "commands": options.recipe.commands(config, Path("llm"), Path("engine")),
        "calibration": options.recipe.calibration and sha256(Path(options.recipe.calibration) / CALIBRATION_FILE),
    }
    return [Step("language model engine", needs, (LANGUAGE_ENGINE,), run)]


def run_command(words: list[str]) -> None:
    """Run a command with its output on the terminal. Raises: ArtifactMismatch if it is missing or fails."""
    try:
        code = subprocess.run(words, check=False).returncode
    except FileNotFoundError as error:
        raise ArtifactMismatch(
            f"{words[0]} is not installed on this machine: convert in the pinned container (docker/), or print the commands with --dry-run"
        ) from error
    if code:
        raise ArtifactMismatch(f"{shlex.join(words)} exited with code {code}; its output above says why")


@dataclass(frozen=True)
class EncoderSteps:
    """How one encoder engine's files are made."""

    make: Callable[[Conversion], list[Step]]
    # What its engines are bound to. Raises ArtifactMismatch if none can be built on this machine.
    machine: Callable[[], dict[str, str]] = dict


# Name in ENCODER_ENGINES (videollama_core/engines/table.py) -> steps that prepare a checkpoint's encoders for it.
ENCODER_STEPS = {
    "onnx": EncoderSteps(onnx_steps),
    "torch": EncoderSteps(torch_steps),
    "tensorrt": EncoderSteps(partial(tensorrt_steps, "tensorrt.build", _build), describe_machine),
    "tensorrt-rtx": EncoderSteps(
        partial(tensorrt_steps, "tensorrt.build_rtx", _build_portable), lambda: {"tensorrt_rtx": rtx_version()}
    ),
}
