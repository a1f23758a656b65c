"""Start a Triton server on a bundle, keep its stages alive, and stop it without losing an answer."""

import importlib.util
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videollama_core.engines.bundle import Bundle
from videollama_core.generation.vllm_arguments import VARIABLE, parse
from videollama_core.media.video_decoders import DECODERS, frame_decoder
from videollama_core.protocol import contract
from videollama_core.protocol.errors import ArtifactMismatch, InvalidRequest, ServerFailed
from videollama_server.installation import Installation, find_installation, stage_environment
from videollama_server.multi_gpu import with_ranks
from videollama_server.ports import choose_ports, loopback_of
from videollama_server.process import ADMIN_HEADER, Addresses, TritonProcess
from videollama_server.processes import stage_processes
from videollama_server.repository import served_repository

logger = logging.getLogger(__name__)
_SUPERVISE_SECONDS = 0.5
_CALL_THREADS = 160  # of a Python stage for its calls to others; each running answer of the entry holds one or two


@dataclass
class ServerOptions:
    host: str = "127.0.0.1"
    grpc_port: int = 8001  # 0 picks a free one
    http_port: int = 8000
    metrics_port: int = 8002
    log: Path | None = None
    cache_megabytes: int = 256  # of media tokens
    start_seconds: float = 300.0
    drain_seconds: float = 30.0
    llm: str = "bundle"  # its own engine, or vllm: what runs the language model
    vllm_arg: tuple[str, ...] = ()  # NAME=VALUE, engine arguments for vLLM
    decoder: str = DECODERS[0]  # of video files


def check_vllm(bundle: Bundle, arguments: Sequence[str] = ()) -> None:
    """Raises: ArtifactMismatch, InvalidRequest, ServerFailed where vLLM cannot take the decoder's place, or not so."""
    parse(arguments)
    if bundle.language_engine.is_backend:
        raise ArtifactMismatch(
            f"{bundle.root} was converted for TensorRT-LLM, which has a container of its own; --llm vllm serves what was "
            "converted with --engine torch or onnx"
        )
    if importlib.util.find_spec("vllm") is None:
        raise ServerFailed(
            "--llm vllm was asked for, and this Python has no vllm; install it as docs/gpu.md says, or leave --llm out"
        )


@dataclass
class TritonServer:
    """A running server on a bundle. Use as a context manager, or `start` and `stop`."""

    bundle: Path
    options: ServerOptions = field(default_factory=ServerOptions)

    def start(self) -> "TritonServer":
        """Returns when every model is ready. Raises: ArtifactMismatch, ServerFailed with the stage's own reason."""
        bundle = Bundle.open(self.bundle)
        self._world_size, self._pool_bytes = bundle.world_size, bundle.pool_bytes
        if "vllm" in (self.options.llm, bundle.llm_engine):
            check_vllm(bundle, self.options.vllm_arg)
        elif self.options.vllm_arg:
            raise InvalidRequest("--vllm-arg came without --llm vllm; add it, or leave the argument out")
        frame_decoder(self.options.decoder)  # one that is not installed is refused before anything is begun
        self._runtime = Path(tempfile.mkdtemp(prefix="vl2-serve-"))
        try:
            self._repository = served_repository(bundle, self._runtime)
            self._start()
        except BaseException:
            self.kill()
            raise
        return self

    def _start(self) -> None:
        options = self.options
        self.grpc_port, self.http_port, self.metrics_port = choose_ports(
            options.host,
            {
                "--grpc-port": options.grpc_port,
                "--http-port": options.http_port,
                "--metrics-port": options.metrics_port,
            },
        )
        self.log = options.log or self._runtime / "server.log"
        self._secret = TritonProcess.new_secret()
        addresses = Addresses(options.host, self.grpc_port, self.http_port, self.metrics_port)
        self._triton = TritonProcess(addresses, self.log, self._secret)
        self._installation = find_installation(self._runtime)
        self._launch()

    def _launch(self) -> None:
        own_address = f"{loopback_of(self.options.host)}:{self.grpc_port}"
        self._triton.launch(
            self._command(self._installation),
            stage_environment(self._installation, own_address, self.options.llm, self.options.decoder)
            | {VARIABLE: json.dumps(parse(self.options.vllm_arg))},
        )
        try:
            self._triton.wait_until_ready(self.options.start_seconds)
        except ServerFailed as error:
            raise ServerFailed(f"{error} (log: {self._keep_log()})") from error
        self._closing = threading.Event()
        self._stages = stage_processes(self._triton.pid)
        threading.Thread(target=self._supervise, args=(self._closing,), name="supervisor", daemon=True).start()

    def _keep_log(self) -> Path:
        """The log outlives the run when it tells of a failure."""
        if self.options.log is not None:
            return self.log
        handle, name = tempfile.mkstemp(prefix="vl2-serve-", suffix=".log")
        os.close(handle)
        shutil.copyfile(self.log, name)
        return Path(name)

    def _command(self, installation: Installation) -> list[str]:
        options = self.options
        words = [
            str(installation.binary),
            f"--model-repository={self._repository}",
            f"--backend-directory={installation.backends}",
            f"--cache-directory={installation.caches}",
            f"--cache-config=local,size={options.cache_megabytes * 2**20}",
            f"--grpc-address={options.host}",
            f"--http-address={options.host}",
            f"--metrics-address={options.host}",
            f"--grpc-port={self.grpc_port}",
            f"--http-port={self.http_port}",
            f"--metrics-port={self.metrics_port}",
            "--model-control-mode=explicit",
            "--load-model=*",
            f"--grpc-restricted-protocol=model-repository,shared-memory:{ADMIN_HEADER}={self._secret}",
            f"--http-restricted-api=model-repository,shared-memory:{ADMIN_HEADER}={self._secret}",
            f"--backend-config=python,thread-pool-size={_CALL_THREADS}",
            "--exit-timeout-secs=5",
        ]
        return with_ranks(words, self._world_size, self._pool_bytes) if self._world_size else words

    @property
    def address(self) -> str:
        return f"{self.options.host}:{self.grpc_port}"

    # --- while it runs ---

    def is_running(self) -> bool:
        return self._triton.is_running()

    def wait(self) -> int:
        """Until the server ends by itself; its exit code."""
        return self._triton.wait()

    def _supervise(self, closing: threading.Event) -> None:
        """Start stages again whose process died.

        Triton 2.51 does so by itself only for an ordinary (not decoupled) model that dies while it works. Every other
        stage is loaded anew; requests that the other processes of an ordinary stage work on end first.
        """
        while not closing.wait(_SUPERVISE_SECONDS) and self.is_running():
            alive = stage_processes(self._triton.pid)
            missing = set(Counter(self._stages.values()) - Counter(alive.values()))
            if not missing:
                self._stages = alive
                continue
            logger.warning("the process of %s died; starting it again", ", ".join(sorted(missing)))
            try:
                if contract.ENTRY.name in missing and self._running_requests():
                    # Nobody reads what the language model still says to the dead process, and an unread response blocks
                    # it for everybody: it goes with its caller.
                    missing.add(contract.LANGUAGE_MODEL.name)
                    for pid, stage in alive.items():
                        if stage == contract.LANGUAGE_MODEL.name:
                            os.kill(pid, signal.SIGKILL)
                for stage in sorted(missing):
                    self._triton.unload(stage)
                    self._triton.load(stage, timeout=self.options.start_seconds)
            except OSError as error:
                logger.error("%s cannot be started again: %s", ", ".join(sorted(missing)), error)

    def _running_requests(self) -> int:
        return self._triton.running_requests(contract.ENTRY.name)

    # --- the end ---

    def stop(self) -> None:
        """Refuse new questions, let running ones end (at most drain_seconds), then stop the server."""
        self._closing.set()
        if self.is_running():
            try:
                self._drain()
            except OSError as error:
                logger.warning("the server does not drain: %s", error)
        self.kill()

    def _drain(self) -> None:
        for stage in (contract.ENTRY.name, contract.ENSEMBLE.name):
            self._triton.unload(stage)
        deadline = time.monotonic() + self.options.drain_seconds
        while self._running_requests() and time.monotonic() < deadline and self.is_running():
            time.sleep(0.05)

    def restart(self) -> None:
        """Start a server that ended by itself again, on the same ports. Raises: ServerFailed."""
        self._closing.set()
        self._triton.end()
        self._launch()

    def kill(self) -> None:
        """End the server's processes now, and remove what it wrote."""
        if hasattr(self, "_triton"):
            self._triton.end()
        shutil.rmtree(self._runtime, ignore_errors=True)

    def __enter__(self) -> "TritonServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
