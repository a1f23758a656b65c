"""Where a Triton server lies on this machine, and what its Python stages need."""

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

ADDRESS_VARIABLE = "VL2_GRPC_ADDRESS"  # host:port of the server's own gRPC port, for its stages
SOCKET_VARIABLE = (
    "VL2_LLM_SOCKET"  # path of the language model's own socket; unset where TensorRT-LLM's backend has none
)
LANGUAGE_MODEL_VARIABLE = "VL2_LLM"  # "vllm": that runs the language model; "bundle": the engine of the bundle

_CONTAINER = Path("/opt/tritonserver")
CONTAINER_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"  # YY.MM, set by NVIDIA's containers alone
LEAST_FOR_GPU_TABLES = "26.07"  # python_backend #439: earlier ones corrupt a stage that reads a stream by BLS
# The server's own calls never leave the machine; gRPC and Triton would ask a proxy even for loopback.
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "ftp_proxy")


@dataclass(frozen=True)
class Installation:
    """Where a Triton server lies, and what it needs from its environment."""

    binary: Path
    backends: Path
    libraries: tuple[Path, ...] = ()


def check_gpu_tables() -> None:
    """Raises: ArtifactMismatch in a container whose stages cannot hand media tokens on the GPU to the language model."""
    found = os.environ.get(CONTAINER_VARIABLE, LEAST_FOR_GPU_TABLES)
    if found < LEAST_FOR_GPU_TABLES:
        raise ArtifactMismatch(
            f"media tokens stay on the GPU in this bundle, and the container is {found}: serve it in {LEAST_FOR_GPU_TABLES} or "
            "later, or convert with --media-token-memory cpu"
        )


def check_vllm(bundle: Bundle, arguments: Sequence[str] = ()) -> None:
    """Raises: ArtifactMismatch, InvalidRequest, ServerFailed where vLLM cannot take the decoder's place, or not so."""
    parse(arguments)
    if bundle.language_engine.is_backend:
        raise ArtifactMismatch(
            f"{bundle.root} was converted for TensorRT-LLM, which has a container of its own; --llm vllm serves what was "
            "converted with --engine torch or onnx"
        )
    if find_spec("vllm") is None:
        raise ServerFailed(
            "--llm vllm was asked for, and this Python has no vllm; install it as docs/gpu.md says, or leave --llm out"
        )


def in_container() -> bool:
    """Whether the server is the container's, which copies no program into the run's folder."""
    return (_CONTAINER / "bin/tritonserver").is_file()


def find_installation(runtime: Path) -> Installation:
    """The container's server in /opt/tritonserver, else the one in the wheel nvidia-pytriton.

    Args:
        runtime: empty folder; receives the backend with the stub of this Python.
    Raises: ServerFailed if there is none, or none for this platform and Python.
    """
    if in_container():
        return Installation(_CONTAINER / "bin/tritonserver", _CONTAINER / "backends")
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerFailed(
            "no Triton server here: neither /opt/tritonserver nor the wheel; pip install 'videollama2-service[serve]' (or '.[serve]' in the source tree) on Linux x86-64"
        )
    wheel = Path(spec.origin).parent / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in (wheel / "python_backend_stubs").glob("*")))
        raise ServerFailed(f"the Triton wheel has no Python backend for Python {version}; it has {known}")
    backend = runtime / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (wheel / "backends" / "python").iterdir():
        if file.is_file():
            (backend / file.name).symlink_to(file)
    # A copy: the stub must not be found through a link, or it looks for its libraries in the link's folder.
    shutil.copy2(stub, backend / stub.name)
    return Installation(
        wheel / "bin/tritonserver",
        backend.parent,
        (wheel.parents[1] / "nvidia_pytriton.libs", _python_library()),
    )


def _python_library() -> Path:
    """Folder of libpython, which the stub needs. Raises: ServerFailed for a Python built without it."""
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
        f"{name} is not on this machine, and Triton's Python backend needs it; install it (Debian: apt install {name.split('.so')[0]}) or use a Python built with --enable-shared"
    )


def stage_environment(
    installation: Installation, address: str, llm: str = "bundle", decoder: str = DECODERS[0]
) -> dict[str, str]:
    """The stubs use this interpreter's packages, find the server's own gRPC port, what runs the language model and what
    decodes video files."""
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
