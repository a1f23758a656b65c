"""Assembles the model repository of a bundle: the tracked stages, ready for `tritonserver --model-repository`.

The tracked config.pbtxt files have no tensors: those are defined by the contract and written into each bundle.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import TYPE_FP16, DataType, ModelInstanceGroup
from tritonclient.grpc.model_config_pb2 import ModelConfig as TritonConfig

from videollama_converters.engine_options import EngineOptions
from videollama_converters.tensorrt_llm.config import render_config
from videollama_core.engines.bundle import LANGUAGE_ENGINE, LANGUAGE_FOLDER
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.contract import ENCODER, LANGUAGE_MODEL, PERCEPTION, STAGES, Stage, Tensor
from videollama_core.protocol.errors import ArtifactMismatch


def tracked_repository() -> Path:
    """The folder model_repository/ of this source tree, or its copy in the installed package. Raises: ArtifactMismatch."""
    for folder in (
        Path(__file__).parents[2] / "model_repository",
        Path(str(resources.files("videollama_server") / "model_repository")),
    ):
        if (folder / "videollama2" / "config.pbtxt").is_file():
            return folder
    raise ArtifactMismatch("the stages (model_repository/) are missing from this installation; reinstall the package")


def assemble(target: Path, options: EngineOptions, config: ModelConfig) -> None:
    """Copy every stage to `target`. An ensemble's version folder is empty, but Triton requires it.

    Paths in the config of TensorRT-LLM's backend are relative to the bundle; the server makes them absolute.
    """
    source = tracked_repository()
    for name in STAGES:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        _write_tensors(target, STAGES[name])
    language_model = target / LANGUAGE_MODEL.name
    if options.language.is_backend:
        (language_model / "1/model.py").unlink()
        text = render_config(options.recipe, config, LANGUAGE_ENGINE, LANGUAGE_FOLDER)
        (language_model / "config.pbtxt").write_text(text, "utf-8")
        for stage in (ENCODER, PERCEPTION):
            with _config(target, stage) as stage_config:
                (table,) = (output for output in stage_config.output if output.name == "prompt_embedding_table")
                table.data_type = TYPE_FP16
    elif options.parameters():
        with _config(target, LANGUAGE_MODEL) as stage_config:
            for key, value in options.parameters().items():
                stage_config.parameters[key].string_value = value
    if options.media_token_memory == "gpu":
        keep_media_tokens_on_gpu(target)


def keep_media_tokens_on_gpu(target: Path) -> None:
    """Run the encoder on GPU 0, where its media tokens stay."""
    with _config(target, ENCODER) as encoder:
        (group,) = encoder.instance_group
        group.kind, group.count = ModelInstanceGroup.KIND_GPU, 1
        group.gpus.append(0)


def _write_tensors(target: Path, stage: Stage) -> None:
    with _config(target, stage) as config:
        for tensor in stage.inputs:
            config.input.add(
                name=tensor.name, data_type=_triton_type(tensor), dims=tensor.dims, optional=tensor.optional
            )
        for tensor in stage.outputs:
            config.output.add(name=tensor.name, data_type=_triton_type(tensor), dims=tensor.dims)


def _triton_type(tensor: Tensor) -> int:
    return DataType.Value(f"TYPE_{tensor.dtype}")


@contextmanager
def _config(repository: Path, stage: Stage) -> Iterator[Any]:
    """A stage's config.pbtxt as Triton's own message; changes are written when the context ends."""
    path = repository / stage.name / "config.pbtxt"
    config = text_format.Parse(path.read_text("utf-8"), TritonConfig())
    yield config
    path.write_text(text_format.MessageToString(config), "utf-8")
