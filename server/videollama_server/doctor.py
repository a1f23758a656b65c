"""`vl2 doctor`: whether this machine can serve, and what is missing. Each check says what was found, and what to do."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click

from videollama_core.engines.bundle import Bundle, engine_path
from videollama_core.engines.specs import graphs_of
from videollama_core.protocol.errors import VideoLlamaError
from videollama_server.installation import check_gpu_tables, find_installation

OK, WARN, FAIL = "ok", "warn", "FAIL"
LEAST_SHARED_MEMORY = 512 * 2**20  # bytes of /dev/shm: the stages hand tensors over in it
DRIVER_NEEDED = 590  # branch of the pinned container (CUDA 13.1)


@dataclass(frozen=True)
class Finding:
    check: str
    state: str  # ok | warn | FAIL
    found: str
    advice: str = ""


def examine(bundle: Path | None = None, ports: tuple[int, ...] = ()) -> list[Finding]:
    """All checks; those of a bundle when one is named."""
    found = [_python(), _triton(), _shared_memory(), _gpu(), _engines(), *(_port(port) for port in ports)]
    if bundle is not None:
        found += _bundle(bundle)
    return found


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Finding("Python", OK, version)
    return Finding("Python", FAIL, version, "Triton's Python stages need 3.11 or 3.12 here (numpy 1)")


def _triton() -> Finding:
    with tempfile.TemporaryDirectory() as runtime:
        try:
            installation = find_installation(Path(runtime))
        except VideoLlamaError as error:
            return Finding("Triton server", FAIL, "none", str(error))
    place = "the container's" if str(installation.binary).startswith("/opt/") else "the wheel's"
    return Finding("Triton server", OK, f"{place}: {installation.binary}")


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Finding(
            "shared memory", FAIL, f"/dev/shm: {error.strerror}", "mount it: the stages hand tensors over in it"
        )
    size = f"{free / 2**20:.0f} MiB free in /dev/shm"
    if free >= LEAST_SHARED_MEMORY:
        return Finding("shared memory", OK, size)
    return Finding(
        "shared memory", FAIL, size, f"at least {LEAST_SHARED_MEMORY // 2**20} MiB; docker run --shm-size 2g"
    )


def _gpu() -> Finding:
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,memory.free",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("GPU", WARN, "none (no nvidia-smi)", "the CPU serves; a GPU needs NVIDIA's driver")
    if done.returncode:
        return Finding(
            "GPU", WARN, f"nvidia-smi ended with {done.returncode}", done.stdout.strip() or done.stderr.strip()
        )
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    told = "; ".join(f"{name}, driver {driver}, {free} of {total} MiB free" for name, driver, total, free in rows)
    oldest = min(int(driver.split(".")[0]) for _, driver, _, _ in rows)
    if oldest < DRIVER_NEEDED:
        advice = f"the pinned container wants driver branch {DRIVER_NEEDED} or newer; --engine torch takes what PyTorch takes"
        return Finding("GPU", WARN, told, advice)
    return Finding("GPU", OK, told)


def _engines() -> Finding:
    packages = ("onnxruntime", "torch", "tensorrt", "tensorrt_rtx", "tensorrt_llm", "vllm")
    found = [f"{name} {metadata.version(name)}" for name in packages if find_spec(name) and _has_version(name)]
    if not found:
        return Finding("engines", FAIL, "none", "pip install 'videollama2-service[serve]' brings ONNX Runtime")
    return Finding("engines", OK, ", ".join(found))


def _has_version(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding(f"port {port}", FAIL, str(error.strerror), "end what listens there, or name another port")
    return Finding(f"port {port}", OK, "free")


def _bundle(path: Path) -> list[Finding]:
    try:
        bundle = Bundle.open(path)
    except VideoLlamaError as error:
        return [Finding("bundle", FAIL, str(path), str(error))]
    size = sum(int(entry["bytes"]) for entry in bundle.manifest["files"].values())
    told = f"{bundle.manifest['name']}, {bundle.engine} in {bundle.dtype}, {size / 2**30:.2f} GiB"
    found = [Finding("bundle", OK, told)]
    checks: dict[str, Callable[[Bundle, int], list[Finding]]] = {
        "onnx": _fits_memory,
        "torch": _fits_torch,
        "tensorrt": _fits_tensorrt,
        "tensorrt-rtx": _fits_tensorrt_rtx,
    }
    return found + checks[bundle.engine](bundle, size) if bundle.engine in checks else found


def _fits_memory(bundle: Bundle, size: int) -> list[Finding]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    told = f"{size / 2**30:.2f} GiB of graphs, {memory / 2**30:.1f} GiB of memory"
    if size < 0.9 * memory:
        return [Finding("memory", OK, told)]
    return [Finding("memory", FAIL, told, "the CPU engine holds all of it: take a larger machine, or --engine torch")]


def _fits_torch(bundle: Bundle, size: int) -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("PyTorch", WARN, f"torch {torch.__version__} sees no GPU", "it serves on the CPU, slowly")]
    free = torch.cuda.mem_get_info()[0]
    language = bundle.config.language
    slots = int(bundle.manifest.get("slots") or 16)
    cache = slots * bundle.max_seq_len * language.layers * 2 * language.kv_heads * language.head_dim * 2
    told = f"weights {size / 2**30:.1f} GiB and {slots} slots {cache / 2**30:.1f} GiB, free {free / 2**30:.1f} GiB"
    if size + cache < 0.95 * free:
        return [Finding("GPU memory", OK, told)]
    return [Finding("GPU memory", FAIL, told, "convert with a shorter --max-seq-len or fewer --slots")]


def _fits_tensorrt(bundle: Bundle, size: int) -> list[Finding]:
    from videollama_core.engines.tensorrt_encoders import check_sidecar, describe_machine

    try:
        if bundle.keeps_media_tokens_on_gpu:
            check_gpu_tables()
        machine = describe_machine()
        for graph in graphs_of(bundle.config):
            path = bundle.root / engine_path(graph.name)
            if path.exists():
                check_sidecar(path, machine)
    except VideoLlamaError as error:
        return [Finding("TensorRT", FAIL, "the engines cannot run here", str(error))]
    return [Finding("TensorRT", OK, f"{machine['tensorrt']} on {machine['gpu']}")]


def _fits_tensorrt_rtx(bundle: Bundle, size: int) -> list[Finding]:
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
            Finding(
                "TensorRT-RTX", FAIL, f"{version}, and no GPU", "the encoders need an NVIDIA GPU: nvidia-smi tells why"
            )
        ]
    return [Finding("TensorRT-RTX", OK, f"{version} on compute capability {capability}"), *_fits_torch(bundle, size)]


@click.command(epilog="Example: vl2 doctor build/2.1-7b --port 8001")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=int,
    default=(8000, 8001, 8002),
    show_default=True,
    help="Look whether it is free.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def doctor(bundle: Path | None, ports: tuple[int, ...], as_json: bool) -> None:
    """Say whether this machine can serve BUNDLE (or anything), and what is missing. Exit code 1 if something fails."""
    found = examine(bundle, ports)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        for finding in found:
            click.echo(f"{finding.state:5} {finding.check:14} {finding.found}")
            if finding.advice and finding.state != OK:
                click.echo(f"{'':20} {finding.advice}")
    if any(finding.state == FAIL for finding in found):
        sys.exit(1)
