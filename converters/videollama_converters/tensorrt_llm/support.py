"""The combinations of weight and KV cache types with which TensorRT-LLM 1.2.1 builds an engine that its executor can start.

Sources at v1.2.1: tensorrt_llm/builder.py (build: when paged context attention is disabled),
cpp/tensorrt_llm/batch_manager/trtGptModelInflightBatching.cpp (chunked context needs it), docs/source/reference/precision.md,
the READMEs of examples/models/core/mixtral and qwen, examples/quantization/quantize.py.
"""

from videollama_core.model.config import LanguageConfig

# quantization -> (quantize.py's --qformat, lowest compute capability that supports it)
QUANTIZATIONS = {"fp8": ("fp8", 8.9), "int4_awq": ("int4_awq", 8.0), "int8_sq": ("int8_sq", 8.0)}
KV_DTYPES = {"auto": 0.0, "int8": 8.0, "fp8": 8.9}  # -> lowest compute capability
AWQ_BLOCK = 128  # number of weights that share a scale
FAMILIES = {"mistral": "Mistral", "mixtral": "Mixtral", "qwen2": "Qwen2"}


def refusal(family: str, quantization: str, kv_dtype: str) -> str:
    """Why a family is not served with these types; "" if it is.

    Prompts are computed in chunks and their KV cache is reused. The executor starts with both only if the engine has paged
    context attention, which the builder disables for some caches after a warning.
    """
    if family == "mixtral" and quantization in ("int4_awq", "int8_sq"):
        return "TensorRT-LLM 1.2.1 quantizes Mixtral only to fp8: use --quantize fp8, or none"
    if kv_dtype == "int8":
        return "the release has no paged context attention for an int8 KV cache, so the server would not start: use --kv-dtype auto"
    if kv_dtype == "fp8" and quantization != "fp8":
        return (
            "the release has paged context attention for an fp8 KV cache only if the weights are fp8 too; otherwise the server would "
            "not start: add --quantize fp8, or use --kv-dtype auto"
        )
    return ""


def awq_refusal(language: LanguageConfig, tp: int) -> str:
    """Why int4_awq cannot be split across `tp` GPUs; "" if it can: no block of weights may span two GPUs."""
    for name, size in (("MLP's width", language.mlp_width), ("heads' width", language.heads * language.head_dim)):
        if size % (tp * AWQ_BLOCK):
            return (
                f"int4_awq scales blocks of {AWQ_BLOCK} weights, which {tp} GPUs would split, as the {name} is {size}: "
                "use a smaller --tp, or --pp"
            )
    return ""


def as_table() -> str:
    """A Markdown table of every pair of types and family, with the reasons for refusals."""
    reasons: list[str] = []
    lines = [
        "| `--quantize` | `--kv-dtype` | " + " | ".join(FAMILIES.values()) + " | capability |",
        "|---|---|" + "---|" * len(FAMILIES) + "---|",
    ]
    for quantization in ("", *QUANTIZATIONS):
        for kv_dtype, capability in KV_DTYPES.items():
            cells = []
            for family in FAMILIES:
                reason = refusal(family, quantization, kv_dtype)
                if reason and reason not in reasons:
                    reasons.append(reason)
                cells.append(f"refused ({reasons.index(reason) + 1})" if reason else "accepted")
            least = max(capability, QUANTIZATIONS[quantization][1] if quantization else 8.0)
            lines.append(f"| {quantization or 'none'} | {kv_dtype} | {' | '.join(cells)} | {least} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}." for number, reason in enumerate(reasons, 1))])
