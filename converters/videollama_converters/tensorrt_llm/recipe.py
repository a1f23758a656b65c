"""The exact commands that build TensorRT-LLM 1.2.1 engines from the plain decoder in `llm/`.

1.2.1 is the last release with engines and the C++ Triton backend. Nothing here imports it: the commands run in its
container (CONTAINER), which has its scripts below EXAMPLES. tests/contract/test_tensorrt_llm.py checks flags and values against
the release.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from videollama_converters.gpus import GPUS, Gpu
from videollama_converters.tensorrt_llm.support import AWQ_BLOCK, KV_DTYPES, QUANTIZATIONS, awq_refusal, refusal
from videollama_core.media.video import MAX_FRAMES
from videollama_core.model.config import ModelConfig, media_token_count
from videollama_core.protocol.errors import InvalidRequest

RELEASE = "1.2.1"
CONTAINER = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
EXAMPLES = "/app/examples"
# The Llama script converts Mistral and Mixtral too.
CONVERT_SCRIPTS = {
    "mistral": "models/core/llama/convert_checkpoint.py",
    "mixtral": "models/core/llama/convert_checkpoint.py",
    "qwen2": "models/core/qwen/convert_checkpoint.py",
}
QUANTIZE_SCRIPT = "quantization/quantize.py"
CALIBRATION_FILE = "train.jsonl"  # in the calibration folder: one {"text": ...} per line
# Words in a path that quantize.py mistakes for a model or data set (tensorrt_llm/quantization/quantize_by_modelopt.py).
_MODEL_WORDS = ("mpt", "vila", "llava-onevision-qwen2")
_DATASET_WORDS = ("cnn_dailymail", "scienceqa", "science_qa")
DTYPES = ("bfloat16", "float16")
TOKENS_PER_BLOCK = 32  # of the paged KV cache
MOST_REQUESTS = 1024  # concurrent, as on the other engines
CONTEXT_TOKENS = 8192  # positions computed in one iteration, over all requests


@dataclass(frozen=True)
class Recipe:
    """How the language model is built."""

    dtype: str = "float16"
    quantization: str = ""  # none, or one of QUANTIZATIONS
    kv_dtype: str = "auto"  # of the KV cache: auto (the model's) or fp8
    tp: int = 1  # tensor parallelism: GPUs that split each layer
    pp: int = 1  # pipeline parallelism: GPUs among which layers are distributed
    ep: int = 1  # expert parallelism: groups of the tp GPUs among which experts are distributed
    max_batch_size: int = 64
    max_seq_len: int = 4096
    gpu: str = "H100"
    calibration: str = ""  # folder with the texts for calibrating a quantization

    @property
    def world_size(self) -> int:
        """Number of GPUs, each with one process (rank)."""
        return self.tp * self.pp

    def check(self, config: ModelConfig) -> None:
        """Raises: InvalidRequest if the release or the GPU does not support this recipe for the checkpoint."""
        self._check_types(config)
        self._check_batch(config)
        self._check_parallelism(config)
        self._check_length(config)

    def _check_types(self, config: ModelConfig) -> None:
        language, gpu = config.language, self.card
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("quantization", self.quantization, ("", *QUANTIZATIONS))
        _one_of("kv-dtype", self.kv_dtype, tuple(KV_DTYPES))
        reason = refusal(language.family, self.quantization, self.kv_dtype)
        if reason:
            raise InvalidRequest(f"{self._pair} for {language.family}: {reason}")
        needed = self.needed_capability
        if gpu.capability < needed:
            raise InvalidRequest(
                f"{self._pair} needs compute capability {needed}, but {self.gpu} has {gpu.capability}: use another GPU, "
                + ("or no --quantize" if language.experts else "or --quantize int4_awq or int8_sq")
            )
        if bool(self.quantization) != bool(self.calibration):
            raise InvalidRequest(
                f"quantization is {self.quantization or 'none'} and calibration is {self.calibration or 'none'}: --quantize needs "
                f"--calibration and vice versa; name a folder with {CALIBRATION_FILE}, one JSON object with a text per line"
            )

    def _check_batch(self, config: ModelConfig) -> None:
        for name in ("tp", "pp", "ep", "max_batch_size"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_batch_size > MOST_REQUESTS:
            raise InvalidRequest(f"max_batch_size is {self.max_batch_size}; it must be at most {MOST_REQUESTS}")
        if self.table_bytes(config) > self.card.gigabytes * 1e9:
            raise InvalidRequest(
                f"max_batch_size is {self.max_batch_size}, whose media tokens alone take {self.table_bytes(config) / 1e9:.0f} GB of "
                f"each GPU, and {self.gpu} has {self.card.gigabytes:g}: use a smaller one"
            )

    def _check_parallelism(self, config: ModelConfig) -> None:
        language = config.language
        if language.heads % self.tp or (language.kv_heads % self.tp and self.tp % language.kv_heads):
            raise InvalidRequest(
                f"tp is {self.tp}, which does not divide {language.heads} heads and {language.kv_heads} key-value heads "
                f"evenly; use one of {', '.join(map(str, _tensor_parallel_sizes(config)))}"
            )
        if language.mlp_width % self.tp:
            raise InvalidRequest(f"tp is {self.tp}, which does not divide the MLP's width of {language.mlp_width}")
        awq_reason = awq_refusal(language, self.tp) if self.quantization == "int4_awq" else ""
        if awq_reason:
            raise InvalidRequest(f"tp is {self.tp}: {awq_reason}")
        if language.layers % self.pp:
            raise InvalidRequest(f"pp is {self.pp}, which does not divide {language.layers} layers")
        if self.ep > 1 and not language.experts:
            raise InvalidRequest(f"ep is {self.ep}, but {language.family} has no experts; leave it out")
        if self.ep > 1 and self.quantization:
            raise InvalidRequest(
                f"ep is {self.ep} with {self.quantization}: the release's quantization divides experts among GPUs only by --tp; "
                "leave out --ep"
            )
        if self.tp % self.ep or (language.experts and language.experts % self.ep):
            raise InvalidRequest(
                f"ep is {self.ep}; it must divide tp ({self.tp}) and the {language.experts} experts, or be left out"
            )

    def _check_length(self, config: ModelConfig) -> None:
        if self.max_seq_len > config.language.max_positions:
            raise InvalidRequest(
                f"--max-seq-len is {self.max_seq_len}, but the checkpoint supports {config.language.max_positions} positions; use at most those"
            )
        media = self.media_tokens(config)
        if self.max_seq_len < media + 64:
            raise InvalidRequest(
                f"--max-seq-len is {self.max_seq_len}, but media alone take {media} positions; use at least {media + 64}"
            )

    @property
    def card(self) -> Gpu:
        """The GPU to build for. Raises: InvalidRequest for an unknown one."""
        if self.gpu not in GPUS:
            raise InvalidRequest(f"gpu is {self.gpu!r}; it must be one of {', '.join(GPUS)}")
        return GPUS[self.gpu]

    @property
    def needed_capability(self) -> float:
        """The lowest compute capability with kernels for these weights and this KV cache."""
        return max(QUANTIZATIONS[self.quantization][1] if self.quantization else 0.0, KV_DTYPES[self.kv_dtype])

    @property
    def _pair(self) -> str:
        return f"{self.quantization or 'no quantization'} with a cache of {self.kv_dtype}"

    @staticmethod
    def media_tokens(config: ModelConfig) -> int:
        """Media tokens of a video, including its audio if the checkpoint has an audio tower."""
        return config.tokens_of("video_with_audio" if config.audio else "video")

    def table_rows(self, config: ModelConfig) -> int:
        """Rows of the largest prompt table that the entry accepts; a larger one would end every running request.

        A request with raw frames may have more than the checkpoint's number of frames, and no prompt is longer than max_seq_len
        (prompt.check_length). Source: PromptTuningBuffers::validate, which checks a table against max_multimodal_len /
        max_batch_size and throws in the executor's loop.
        """
        frames = media_token_count(config.connector, MAX_FRAMES, config.vision.grid)
        return min(max(frames, self.media_tokens(config)), self.max_seq_len)

    def table_bytes(self, config: ModelConfig) -> int:
        """Memory that the engine reserves for prompt tables on every GPU."""
        return self.max_batch_size * self.table_rows(config) * config.language.width * 2

    # --- commands ---

    def commands(self, config: ModelConfig, llm: Path, out: Path) -> list[list[str]]:
        """Commands from `llm` (plain Hugging Face directory) to `out`/engine, to be run in CONTAINER in this order."""
        self.check(config)
        checkpoint = out / "checkpoint"
        first = self._quantize(llm, checkpoint) if self.quantization else self._convert(config, llm, checkpoint)
        return [first, self._build(config, checkpoint, out / "engine")]

    def _convert(self, config: ModelConfig, llm: Path, out: Path) -> list[str]:
        family = config.language.family
        words = ["python3", f"{EXAMPLES}/{CONVERT_SCRIPTS[family]}", "--model_dir", str(llm), "--output_dir", str(out)]
        words += ["--dtype", self.dtype, "--tp_size", str(self.tp), "--pp_size", str(self.pp)]
        if config.language.experts:  # moe_tp x moe_ep = tp
            words += ["--moe_tp_size", str(self.tp // self.ep), "--moe_ep_size", str(self.ep)]
        return [*words, "--workers", str(self.world_size)]

    def _quantize(self, llm: Path, out: Path) -> list[str]:
        for path, known in ((str(llm), _MODEL_WORDS), (self.calibration.lower(), _DATASET_WORDS)):
            matches = [word for word in known if word in path]
            if matches:
                raise InvalidRequest(
                    f"the path {path} contains {matches[0]!r}, by which the release's quantize.py would assume another model or "
                    "data set: use a path without it"
                )
        words = ["python3", f"{EXAMPLES}/{QUANTIZE_SCRIPT}", "--model_dir", str(llm), "--output_dir", str(out)]
        words += ["--dtype", self.dtype, "--qformat", QUANTIZATIONS[self.quantization][0]]
        words += ["--calib_dataset", self.calibration, "--calib_size", "512"]
        if self.kv_dtype != "auto":
            words += ["--kv_cache_dtype", self.kv_dtype]
        if self.quantization == "int4_awq":
            words += ["--awq_block_size", str(AWQ_BLOCK)]
        return [*words, "--tp_size", str(self.tp), "--pp_size", str(self.pp)]

    def _build(self, config: ModelConfig, checkpoint: Path, engine: Path) -> list[str]:
        words = ["trtllm-build", "--checkpoint_dir", str(checkpoint), "--output_dir", str(engine)]
        sizes = {
            "max_batch_size": self.max_batch_size,
            "max_input_len": self.max_seq_len - 1,  # includes media positions
            "max_seq_len": self.max_seq_len,
            "max_beam_width": 1,
            "max_num_tokens": max(CONTEXT_TOKENS, self.max_batch_size),
            "max_multimodal_len": self.max_batch_size * self.table_rows(config),
            "tokens_per_block": TOKENS_PER_BLOCK,
            "workers": self.world_size,
        }
        for name, value in sizes.items():
            words += [f"--{name}", str(value)]
        features = {
            "gpt_attention_plugin": "auto",
            # fp8 has its own kernels; the other types use the plugin's.
            "gemm_plugin": "disable" if self.quantization == "fp8" else self.dtype,
            "context_fmha": "enable",
            "remove_input_padding": "enable",
            "kv_cache_type": "paged",
            "use_paged_context_fmha": "enable",  # needed for chunked context and KV cache reuse
            "use_fp8_context_fmha": "enable" if self.kv_dtype == "fp8" else "disable",  # as the builder would decide
            "multiple_profiles": "enable",
        }
        if config.language.experts:
            features["moe_plugin"] = "auto"
        for name, choice in features.items():
            words += [f"--{name}", choice]
        return words


def _tensor_parallel_sizes(config: ModelConfig) -> list[int]:
    language = config.language
    return [
        tp
        for tp in (1, 2, 4, 8)
        if language.heads % tp == 0 and (language.kv_heads % tp == 0 or tp % language.kv_heads == 0)
    ]


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequest(f"{name} is {value!r}; it must be one of {', '.join(filter(None, choices))}")


def script(recipe: Recipe, config: ModelConfig, llm: Path, out: Path) -> str:
    """The commands as a shell script."""
    lines = [shlex.join(words) for words in recipe.commands(config, llm, out)]
    return "\n".join(
        ["#!/bin/sh", f"# In {CONTAINER} (TensorRT-LLM {RELEASE}), on {recipe.gpu}.", "set -eu", *lines, ""]
    )
