"""Whether this machine can run a bundle on its engine, for `vl2 doctor`. Packages are imported on demand."""

import os
from dataclasses import dataclass
from pathlib import Path

from videollama_core.engines.bundle import LANGUAGE_FOLDER, Bundle, engine_path
from videollama_core.engines.specs import graphs_of
from videollama_core.protocol.errors import VideoLlamaError

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was found, and what to do about it."""

    check: str
    state: str  # ok | warn | FAIL
    detail: str
    advice: str = ""


def memory_bytes(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory of the machine, or of this process's container if it has a lower limit."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(memory, int(limit.read_text()))
    except (OSError, ValueError):  # none, or "max"
        return memory


def check_memory(bundle: Bundle, size: int) -> list[Finding]:
    """Whether the graphs fit in memory. Args: size: bytes of the bundle, as in every check here."""
    memory = memory_bytes()
    if bundle.llm_engine == "onnx":  # does not read the plain language model in llm/
        size -= sum(
            int(entry["bytes"])
            for name, entry in bundle.manifest["files"].items()
            if name.startswith(f"{LANGUAGE_FOLDER}/")
        )
    summary = f"{size / 2**30:.2f} GiB of graphs, {memory / 2**30:.1f} GiB of memory"
    if size < 0.9 * memory:
        return [Finding("memory", OK, summary)]
    return [
        Finding(
            "memory",
            FAIL,
            summary,
            "the CPU engine holds all of it: use a larger machine, --quantize int8, or --engine torch",
        )
    ]


def check_torch(bundle: Bundle, size: int) -> list[Finding]:
    """Whether weights and slots fit in the free memory of the GPU."""
    import torch

    if not torch.cuda.is_available():
        return [Finding("PyTorch", WARN, f"torch {torch.__version__} sees no GPU", "it will serve on the CPU, slowly")]
    free = torch.cuda.mem_get_info()[0]
    language = bundle.config.language
    slots = int(bundle.manifest.get("slots") or 16)
    cache = slots * bundle.max_seq_len * language.layers * 2 * language.kv_heads * language.head_dim * 2
    summary = f"weights {size / 2**30:.1f} GiB and {slots} slots {cache / 2**30:.1f} GiB, free {free / 2**30:.1f} GiB"
    if size + cache < 0.95 * free:
        return [Finding("GPU memory", OK, summary)]
    return [Finding("GPU memory", FAIL, summary, "convert with a shorter --max-seq-len or fewer --slots")]


def check_tensorrt(bundle: Bundle, size: int) -> list[Finding]:
    """Whether the bundle's engines were built for this machine's TensorRT and GPU."""
    from videollama_core.engines.tensorrt_encoders import check_sidecar, describe_machine

    try:
        machine = describe_machine()
        for graph in graphs_of(bundle.config):
            path = bundle.root / engine_path(graph.name)
            if path.exists():
                check_sidecar(path, machine)
    except VideoLlamaError as error:
        return [Finding("TensorRT", FAIL, "the engines cannot run here", str(error))]
    return [Finding("TensorRT", OK, f"{machine['tensorrt']} on {machine['gpu']}")]


def check_tensorrt_rtx(bundle: Bundle, size: int) -> list[Finding]:
    """Whether the bundle's engines were built for this machine's TensorRT-RTX and GPU, and the rest as `check_torch`."""
    from videollama_core.engines.tensorrt_rtx import check_rtx_sidecar, rtx_version
    from videollama_core.engines.tensorrt_rtx_encoders import gpu_capability

    try:
        version, capability = rtx_version(), gpu_capability()
        for graph in graphs_of(bundle.config):
            path = bundle.root / engine_path(graph.name)
            if path.exists():
                check_rtx_sidecar(path, version, capability)
    except VideoLlamaError as error:
        return [Finding("TensorRT-RTX", FAIL, "the engines cannot run here", str(error))]
    if capability is None:
        return [
            Finding("TensorRT-RTX", FAIL, f"{version}, and no GPU", "the encoders need an NVIDIA GPU; check nvidia-smi")
        ]
    return [Finding("TensorRT-RTX", OK, f"{version} on compute capability {capability}"), *check_torch(bundle, size)]
