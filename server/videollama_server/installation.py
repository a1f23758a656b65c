"""Locating a Triton server on this machine, and the environment that its Python stages need."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from videollama_core.engines.bundle import Bundle
from videollama_core.generation.vllm_arguments import parse
from videollama_core.media.video_decoders import DECODER_VARIABLE, DECODERS
from videollama_core.protocol.errors import ArtifactMismatch, ServerFailed

ADDRESS_VARIABLE = "VL2_GRPC_ADDRESS"  # gRPC target of the server itself, for its stages
SOCKET_VARIABLE = "VL2_LLM_SOCKET"  # path of the language model's own socket; unset for TensorRT-LLM, which has none
LANGUAGE_MODEL_VARIABLE = "VL2_LLM"  # what runs the language model: "vllm", or "bundle" for the bundle's engine

_CONTAINER = Path("/opt/tritonserver")
CONTAINER_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"  # YY.MM, set only in NVIDIA's containers
LEAST_FOR_GPU_TABLES = "26.07"  # python_backend #439: earlier versions corrupt a stage that reads a stream by BLS
# The server's internal calls never leave the machine, but gRPC and Triton use a proxy even for loopback addresses.
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "ftp_proxy")


@dataclass(frozen=True)
class Installation:
    """The paths of a Triton server, and the libraries that its environment must provide."""

    binary: Path
    backends: Path
    libraries: tuple[Path, ...] = ()


def check_gpu_tables() -> None:
    """Raises: ArtifactMismatch in a container whose stages cannot pass media tokens to the language model on the GPU."""
    version = os.environ.get(CONTAINER_VARIABLE, LEAST_FOR_GPU_TABLES)
    if version < LEAST_FOR_GPU_TABLES:
        raise ArtifactMismatch(
            f"this bundle keeps media tokens on the GPU, but the container is {version}: serve it in {LEAST_FOR_GPU_TABLES} or "
            "later, or convert it with --media-token-memory cpu"
        )


def check_vllm(bundle: Bundle, arguments: Sequence[str] = ()) -> None:
    """Raises: ArtifactMismatch, InvalidRequest or ServerFailed if vLLM cannot run this bundle with these arguments."""
    parse(arguments)
    if bundle.language_engine.is_backend:
        raise ArtifactMismatch(
            f"{bundle.root} was converted for TensorRT-LLM, which has its own container; --llm vllm serves only bundles that "
            "were converted with --engine torch or onnx"
        )
    if find_spec("vllm") is None:
        raise ServerFailed(
            "--llm vllm was requested, but this Python has no vllm; install it as docs/gpu.md says, or leave --llm out"
        )


def in_container() -> bool:
    """Whether Triton comes from a container; then no program is copied into the run's folder."""
    return (_CONTAINER / "bin/tritonserver").is_file()


def find_installation(runtime: Path) -> Installation:
    """Find the container's server in /opt/tritonserver, otherwise the one in the wheel nvidia-pytriton.

    Args:
        runtime: empty folder; the Python backend with the stub for this Python is placed in it.
    Raises: ServerFailed if there is none for this platform and Python.
    """
    if in_container():
        return Installation(_CONTAINER / "bin/tritonserver", _CONTAINER / "backends")
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerFailed(
            "there is no Triton server, neither /opt/tritonserver nor the wheel; pip install 'videollama2-service[serve]' (or '.[serve]' in the source tree) on Linux x86-64"
        )
    wheel = Path(spec.origin).parent / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        versions = ", ".join(sorted(path.name for path in (wheel / "python_backend_stubs").glob("*")))
        raise ServerFailed(f"the Triton wheel has no Python backend for Python {version}; use one of {versions}")
    backend = runtime / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (wheel / "backends" / "python").iterdir():
        if file.is_file():
            (backend / file.name).symlink_to(file)
    # A copy, because the stub looks for its libraries in the folder of its path, even if that is a link.
    shutil.copy2(stub, backend / stub.name)
    return Installation(
        wheel / "bin/tritonserver",
        backend.parent,
        (wheel.parents[1] / "nvidia_pytriton.libs", _python_library()),
    )


def _python_library() -> Path:
    """The folder of libpython, which the stub needs. Raises: ServerFailed if this machine has none."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for folder in (
        sysconfig.get_config_var("LIBDIR"),
        str(Path(sys.base_prefix) / "lib"),
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/local/lib",
    ):
        if folder and (Path(folder) / name).is_file():
            return Path(folder)
    raise ServerFailed(
        f"{name} is missing, and Triton's Python backend needs it; install it (Debian: apt install {name.split('.so')[0]}) or use a Python built with --enable-shared"
    )


def stage_environment(
    installation: Installation, address: str, llm: str = "bundle", decoder: str = DECODERS[0]
) -> dict[str, str]:
    """The environment of the server and its stages: this interpreter's packages, and the settings of the stages.

    Args:
        address: gRPC target of the server itself.
        llm: what runs the language model.
        decoder: what decodes video files.
    """
    environment = {name: value for name, value in os.environ.items() if name.lower() not in _PROXIES} | {
        ADDRESS_VARIABLE: address,
        LANGUAGE_MODEL_VARIABLE: llm,
        DECODER_VARIABLE: decoder,
    }
    libraries = [str(folder) for folder in installation.libraries]
    if libraries:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(
            [*libraries, *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        )
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    environment["PYTHONUNBUFFERED"] = "1"
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return environment
