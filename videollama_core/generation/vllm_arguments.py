"""Engine arguments that `vl2 serve --vllm-arg` passes through to vLLM, checked before the server starts."""

import json
import os
from collections.abc import Sequence
from typing import Any

from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest

VARIABLE = "VL2_VLLM_ARGS"  # JSON object, for the language model's stage
# Set by the stage itself: with other values it would give other answers, or none.
OWN = (
    "async_scheduling",
    "disable_log_stats",
    "dtype",
    "enable_prefix_caching",
    "enable_prompt_embeds",
    "logits_processors",
    "max_model_len",
    "max_num_seqs",
    "model",
    "seed",
    "skip_tokenizer_init",
)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE -> arguments; a value is JSON, or a plain string. Raises: InvalidRequest."""
    arguments: dict[str, Any] = {}
    for word in words:
        name, mark, value = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not mark or not name:
            raise InvalidRequest(f"--vllm-arg {word!r}: expected NAME=VALUE, such as tensor_parallel_size=2")
        if name in OWN:
            raise InvalidRequest(
                f"--vllm-arg {word!r}: {name} is set by the stage; --max-seq-len and --slots of vl2 convert set sizes"
            )
        if name.startswith("data_parallel"):
            raise InvalidRequest(
                f"--vllm-arg {word!r}: the stage runs one engine; for more, start a server on each GPU "
                "(CUDA_VISIBLE_DEVICES=1 vl2 serve ... --grpc-port 8011) and distribute questions over them"
            )
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def from_environment() -> dict[str, Any]:
    """The arguments that `vl2 serve` passed to this stage."""
    return dict(json.loads(os.environ.get(VARIABLE, "{}")))


def check_known(arguments: dict[str, Any], known: Sequence[str], version: str) -> None:
    """Raises: ArtifactMismatch for an argument that the installed vLLM does not have."""
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ArtifactMismatch(f"vLLM {version} has no engine argument {unknown[0]}; omit --vllm-arg {unknown[0]}=...")
