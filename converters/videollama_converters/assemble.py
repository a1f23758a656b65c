"""The model repository of a bundle: the tracked stages, ready for `tritonserver --model-repository`."""

import re
import shutil
from importlib import resources
from pathlib import Path

from videollama_converters.engine_options import EngineOptions
from videollama_converters.tensorrt_llm_config import render_config
from videollama_core.engines.bundle import LANGUAGE_ENGINE, LANGUAGE_FOLDER
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.contract import ENCODER, LANGUAGE_MODEL, PERCEPTION, PREPROCESS, STAGES
from videollama_core.protocol.errors import ArtifactMismatch


def tracked_repository() -> Path:
    """model_repository/ of this source tree, or the copy inside the installed package."""
    for folder in (
        Path(__file__).parents[2] / "model_repository",
        Path(str(resources.files("videollama_server") / "model_repository")),
    ):
        if (folder / "videollama2" / "config.pbtxt").is_file():
            return folder
    raise ArtifactMismatch(
        "the stages (model_repository/) are missing from this installation; install the package again"
    )


def assemble(target: Path, options: EngineOptions, config: ModelConfig, bundle: Path) -> None:
    """Copy every stage. An ensemble's version folder is empty, and Triton wants it there.

    Args:
        bundle: where the repository will lie; TensorRT-LLM's backend finds its engine below it.
    """
    source = tracked_repository()
    for name in STAGES:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = target / LANGUAGE_MODEL.name / "config.pbtxt"
    if options.language.is_backend:
        (target / LANGUAGE_MODEL.name / "1/model.py").unlink()
        root = bundle.resolve()
        path.write_text(
            render_config(options.recipe, config, str(root / LANGUAGE_ENGINE), str(root / LANGUAGE_FOLDER)), "utf-8"
        )
        for name in (ENCODER.name, PERCEPTION.name):
            _replace(
                target / name / "config.pbtxt", r'("prompt_embedding_table", data_type: )TYPE_FP32', r"\1TYPE_FP16"
            )
        if options.media_token_memory == "gpu":
            keep_media_tokens_on_gpu(target)
        return
    for key, value in options.parameters().items():
        _replace(path, rf'(key: "{key}", value {{ string_value: )"[^"]*"', rf'\g<1>"{value}"')


def keep_media_tokens_on_gpu(target: Path) -> None:
    """The response cache takes tensors of the CPU alone: frames are kept there, and tables by the encoder itself."""
    _replace(target / PERCEPTION.name / "config.pbtxt", r"(response_cache \{ enable: )true", r"\1false")
    with (target / PREPROCESS.name / "config.pbtxt").open("a", encoding="utf-8") as file:
        file.write("response_cache { enable: true }\n")
    _replace(
        target / ENCODER.name / "config.pbtxt", r"kind: KIND_CPU, count: 1", "kind: KIND_GPU, count: 1, gpus: [ 0 ]"
    )


def _replace(path: Path, pattern: str, value: str) -> None:
    text, count = re.subn(pattern, value, path.read_text("utf-8"))
    assert count == 1, (path, pattern)
    path.write_text(text, "utf-8")
