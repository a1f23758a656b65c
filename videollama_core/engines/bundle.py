"""A converted checkpoint as the stages read it: build/NAME.

manifest.json       written last: without it the bundle is incomplete
onnx/               the graphs (.onnx with .onnx.data), for --engine onnx, tensorrt and tensorrt-rtx
torch/              weights of the encoders, for --engine torch
engines/            TensorRT engines with their sidecars, for --engine tensorrt and tensorrt-rtx
llm/                the decoder as a plain Hugging Face directory, with tokenizer and chat template
model_repository/   ready to serve
parity.json         difference between each graph and its PyTorch module
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videollama_core.checkpoint.files import in_words, read_json, shown
from videollama_core.engines.table import EncoderEngine, LanguageEngine, encoder_engine, language_engine
from videollama_core.model.config import ModelConfig
from videollama_core.model.value_rules import RULES, check_model
from videollama_core.protocol.errors import ArtifactMismatch, CheckpointMismatch
from videollama_core.protocol.messages import GenerationDefaults
from videollama_core.text import Tokenizer, read_generation_defaults

FORMAT = 6  # of the folder; a bundle of another format must be converted again
MANIFEST = "manifest.json"
LANGUAGE_FOLDER = "llm"
LANGUAGE_ENGINE = "engines/llm/engine"  # of TensorRT-LLM
REPOSITORY = "model_repository"
ENCODER_WEIGHTS = "torch/encoders.safetensors"  # vision.*, connector.*, audio.*; in bundles for PyTorch


def graph_path(name: str) -> str:
    """Path of an ONNX graph within the bundle."""
    return f"onnx/{name}.onnx"


def engine_path(name: str) -> str:
    """Path of a TensorRT engine within the bundle; its sidecar is beside it with the suffix .json."""
    return f"engines/{name}.engine"


def runtime_cache_path(name: str) -> str:
    """Path of the kernels that TensorRT-RTX compiled for the serving GPU; not part of the manifest."""
    return f"engines/{name}.runtime-cache"


@dataclass(frozen=True)
class Bundle:
    """A complete bundle on disk; `open` checks it."""

    root: Path
    config: ModelConfig
    manifest: dict[str, Any]

    @classmethod
    def open(cls, root: Path) -> "Bundle":
        """Open and check a bundle. Raises: ArtifactMismatch if it is incomplete, damaged or of another format."""
        path = root / MANIFEST
        if not root.is_dir():
            raise ArtifactMismatch(f"{root} is not a folder; name one that `vl2 convert CHECKPOINT --out {root}` made")
        if not path.is_file():
            raise ArtifactMismatch(
                f"{root} has no {MANIFEST}: not a converted checkpoint, or its conversion did not finish; run vl2 convert"
            )
        try:
            manifest = read_json(path)
            config = ModelConfig.from_dict(manifest["model"])
            check_model(config, CheckpointMismatch)
            files = {str(name): int(entry["bytes"]) for name, entry in manifest["files"].items()}
            _check_values(manifest)
        except (CheckpointMismatch, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ArtifactMismatch(f"{path} is damaged ({in_words(error)}); convert again") from error
        if manifest.get("format") != FORMAT:
            raise ArtifactMismatch(
                f"{path} has format {manifest.get('format')}; this version reads format {FORMAT}: convert again"
            )
        bundle = cls(root, config, manifest)
        try:
            _ = bundle.encoder_engine, bundle.language_engine
        except ArtifactMismatch as error:
            raise ArtifactMismatch(
                f"{path}: {error}; serve it with the version that made it, or convert again"
            ) from error
        for name, size in files.items():
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise ArtifactMismatch(f"{path} lists {shown(name)}, which is outside the bundle: convert again")
            actual = (root / name).stat().st_size if (root / name).is_file() else None
            if actual != size:
                state = "is missing" if actual is None else f"has {actual} bytes"
                raise ArtifactMismatch(f"{root / name} {state}; the manifest lists {size} bytes: convert again")
        return bundle

    @property
    def identity(self) -> bytes:
        """Differs for any difference in content: the manifest has the hash of each file."""
        return json.dumps(self.manifest, sort_keys=True).encode()

    @property
    def engine(self) -> str:
        """The engine of the encoders: a key of ENCODER_ENGINES."""
        return str(self.manifest["engine"])

    @property
    def llm_engine(self) -> str:
        """The engine of the language model: a key of LANGUAGE_ENGINES."""
        default = self.encoder_engine.language_engines[0]  # older manifests name none
        return str(self.manifest.get("llm_engine", default))

    @property
    def encoder_engine(self) -> EncoderEngine:
        """Raises: ArtifactMismatch for an unknown engine."""
        return encoder_engine(self.engine)

    @property
    def language_engine(self) -> LanguageEngine:
        """Raises: ArtifactMismatch for an unknown engine."""
        return language_engine(self.llm_engine)

    @property
    def dtype(self) -> str:
        """The type in which the engine computes: "float32", "float16" or "bfloat16"."""
        return str(self.manifest["dtype"])

    @property
    def quantization(self) -> str:
        """Quantization of the language model's weights, as `vl2 convert --quantize` names it; "" if there is none."""
        return str(self.manifest.get("quantization", ""))

    @property
    def world_size(self) -> int:
        """GPUs of the language model on TensorRT-LLM; 0 for other engines."""
        return int(self.manifest.get("world_size", 0))

    @property
    def keeps_media_tokens_on_gpu(self) -> bool:
        """Whether media tokens stay on the GPU between the encoder and the language model."""
        return self.manifest.get("media_token_memory", "cpu") == "gpu"

    @property
    def pool_bytes(self) -> int:
        """Bytes of GPU memory that the server reserves for media tokens in transit."""
        return int(self.manifest.get("pool_bytes", 0))

    @property
    def max_seq_len(self) -> int:
        """The most positions of prompt and answer together."""
        return int(self.manifest["max_seq_len"])

    def graph(self, name: str) -> Path:
        """Path of an ONNX graph."""
        return self.root / graph_path(name)

    @property
    def language_folder(self) -> Path:
        """The language model as a plain Hugging Face folder, with its tokenizer."""
        return self.root / LANGUAGE_FOLDER

    def tokenizer(self) -> Tokenizer:
        """Raises: ArtifactMismatch."""
        return Tokenizer(self.language_folder)

    def generation_defaults(self, tokenizer: Tokenizer) -> GenerationDefaults:
        """Raises: ArtifactMismatch."""
        return read_generation_defaults(self.language_folder, tokenizer)


def _check_values(manifest: dict[str, Any]) -> None:
    """Raises: ValueError or KeyError for values that no conversion writes."""
    positions = manifest["max_seq_len"]
    if not RULES["language"]["max_positions"].allows(positions):
        raise ValueError(f"max_seq_len is {shown(positions)}")
    for key in ("engine", "dtype", "quantization"):
        if not isinstance(manifest.get(key, "" if key == "quantization" else None), str):
            raise ValueError(f"{key} is {shown(manifest.get(key))}")
    for key in ("world_size", "pool_bytes"):
        if type(manifest.get(key, 0)) is not int or manifest.get(key, 0) < 0:
            raise ValueError(f"{key} is {shown(manifest[key])}")
