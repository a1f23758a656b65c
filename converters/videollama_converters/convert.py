"""Runs the whole conversion of one checkpoint, in order."""

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from videollama_converters import assemble as assembling
from videollama_converters.engine_options import EngineOptions
from videollama_converters.engine_steps import ENCODER_STEPS, Conversion, language_engine_steps
from videollama_converters.export.split_language_model import split_language_model
from videollama_converters.steps.bundle_writer import BundleWriter, Step, files_below, sha256
from videollama_converters.steps.code_hash import code_hash
from videollama_converters.steps.progress import Progress, SilentProgress
from videollama_converters.tensorrt.check import check_graphs
from videollama_converters.tokenizer_check import check_tokenizer
from videollama_core.checkpoint.files import find_file, read_json
from videollama_core.checkpoint.parts import CheckpointParts, open_checkpoint
from videollama_core.checkpoint.read_config import read_model_config, read_name
from videollama_core.checkpoint.tokenizer_files import TOKENIZER_FILES
from videollama_core.checkpoint.variants import TOWERS
from videollama_core.engines.bundle import FORMAT, LANGUAGE_FOLDER, REPOSITORY
from videollama_core.model.config import AUDIO_KINDS, ModelConfig
from videollama_core.protocol.contract import MEDIA_KINDS


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
        tower: folder of the vision tower; needed if it is neither next to the checkpoint nor a published one.
        base: folder of the base language model, for Base folders and adapters.
        options: engines and data types to convert for.
        origin: "hub id@commit" of the parts (checkpoint, tower, base) that were downloaded from the hub.
    Returns: the bundle's folder.
    Raises: CheckpointMismatch, ParityFailed, ArtifactMismatch (also if `out` holds somebody else's files under the bundle's
        names), OSError when the folder cannot be written.
    """
    parts = open_checkpoint(checkpoint, tower, base)
    config = parts.config
    origin = dict(origin or {})
    machine = check_config(config, options)
    check_source(parts, progress)  # before a folder is made
    with BundleWriter(out).locked() as writer:
        source = _read_source(parts, progress)
        steps = plan_steps(Conversion(parts, source, out, progress, options, machine))
        writer.check_owned(steps)
        for step in steps:
            progress.start(step.name, step.work)
            reused = writer.is_valid(step)
            if not reused:
                writer.make(step)
            progress.done(reused)
        name = origin["checkpoint"].split("@")[0] if "checkpoint" in origin else checkpoint.resolve().name
        writer.write_manifest(
            {"format": FORMAT, "name": name}
            | _describe(config, options)
            | {"origin": origin, "source": source, "files": writer.files()}
        )
    return out


def _describe(config: ModelConfig, options: EngineOptions) -> dict[str, Any]:
    """What the manifest says about the model and what it was converted for."""
    return {
        "model": config.to_dict(),
        "media_tokens": {
            kind: config.tokens_of(kind) for kind in MEDIA_KINDS if config.audio or kind not in AUDIO_KINDS
        },
        "max_seq_len": options.positions(config),
        "engine": options.engine,
        "llm_engine": options.llm_engine,
        "dtype": options.dtype,
        "quantization": options.quantization or options.recipe.quantization,
        "slots": int(options.parameters().get("max_num_sequences", 0)),
        "world_size": options.recipe.world_size if options.language.is_backend else 0,
        "media_token_memory": options.media_token_memory,
        "pool_bytes": options.pool_bytes(config),
        "versions": {package: metadata.version(package) for package in ("torch", "onnx", "onnxruntime")},
    }


def check_config(config: ModelConfig, options: EngineOptions) -> dict[str, str]:
    """Check the options before hours of work. Returns: what the engines will be bound to. Raises: InvalidRequest, ArtifactMismatch."""
    options.check(config)
    if options.encoders.is_tensorrt:
        check_graphs(config, options)
    machine = ENCODER_STEPS[options.engine].machine()
    options.check_machine(machine)
    return machine


def check_before_download(tower: str | None, options: EngineOptions, checkpoint: Path) -> None:
    """Run `check_config` for a checkpoint without its weights, if its tower is known: a local folder, or published.

    Only the weights show whether there is an audio tower, so the conversion checks again.
    """
    if tower is None and read_name(read_json(checkpoint / "config.json"), "mm_vision_tower") not in TOWERS:
        return
    if tower is None or Path(tower).is_dir():
        check_config(read_model_config(checkpoint, Path(tower) if tower else None), options)


def plan_steps(of: Conversion) -> list[Step]:
    """All steps of a conversion, in order."""
    parts = of.parts
    stages = {"stages": _tree_hash(assembling.tracked_repository()), "options": of.options.of_repository()}
    return [
        *ENCODER_STEPS[of.options.engine].make(of),
        Step(
            "language model",
            of.inputs("export.split_language_model"),
            (LANGUAGE_FOLDER,),
            lambda to: split_language_model(parts, to / LANGUAGE_FOLDER, of.progress.advance),
            work=len(parts.language_sources()),
        ),
        Step(
            "model repository",
            {"code": code_hash(assembling.__name__)} | stages,
            (REPOSITORY,),
            lambda to: assembling.assemble(to / REPOSITORY, of.options, parts.config),
        ),
        *language_engine_steps(of),
    ]


def check_source(parts: CheckpointParts, progress: Progress) -> None:
    """Raises: CheckpointMismatch unless the checkpoint is complete and its tokenizer works."""
    progress.start("checking the checkpoint", 2)
    parts.check()
    progress.advance()
    check_tokenizer(parts.folders.language, parts.config)
    progress.advance()
    progress.done(reused=False)


def _read_source(parts: CheckpointParts, progress: Progress) -> dict[str, str]:
    """Hash every file that the result depends on, named by its part of the checkpoint.

    Not by its folder: in the hub's cache that is the commit, which changes with every edit of a model card.
    """
    folders = parts.folders
    places = [("checkpoint", folders.checkpoint), ("base", folders.language)]
    places += [("tower", folders.tower)] if folders.tower else []
    small = [find_file(folders.checkpoint, name) for name in ("config.json", "adapter_config.json")]
    small += [find_file(folders.language, name) for name in ("config.json", *TOKENIZER_FILES)]
    if folders.tower:
        small += [find_file(folders.tower, name) for name in ("config.json", "preprocessor_config.json")]
    files = [path for path in dict.fromkeys((*small, *parts.paths())) if path is not None]
    progress.start("reading the checkpoint", len(files))
    hashes = {}
    for path in files:
        matches = (place for place in places if path.is_relative_to(place[1]))
        part, folder = next(matches, (path.parent.name, path.parent))
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
