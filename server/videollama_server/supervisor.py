"""Start a Triton server on a bundle, keep its stages alive, and stop it without losing an answer."""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from videollama_core.engines.bundle import Bundle
from videollama_core.engines.media_cache import CACHE_VARIABLE, KEPT_BYTES
from videollama_core.generation.vllm_arguments import VARIABLE, parse
from videollama_core.media.video_decoders import DECODERS, frame_decoder
from videollama_core.protocol import contract
from videollama_core.protocol.errors import InvalidRequest, ServerFailed
from videollama_core.protocol.trace_context import MEASURED, RESERVED, TRACEPARENT
from videollama_core.telemetry.logs import LogStyle
from videollama_core.telemetry.traces import with_endpoint
from videollama_server.control import Sockets
from videollama_server.endpoint.access import Access
from videollama_server.endpoint.config import EndpointConfig, exposed_models, loaded_stages
from videollama_server.endpoint.process import EndpointProcess
from videollama_server.endpoint.state import Told
from videollama_server.fetch.policy import MediaPolicy
from videollama_server.installation import (
    SOCKET_VARIABLE,
    Installation,
    check_vllm,
    find_installation,
    in_container,
    stage_environment,
)
from videollama_server.machine.checks import MOST_THREADS, WORN_THREADS, check_machine
from videollama_server.machine.log import kept_copy, rotate
from videollama_server.machine.runtime import Runtime
from videollama_server.multi_gpu import with_ranks
from videollama_server.ports import choose_ports
from videollama_server.process import TritonProcess
from videollama_server.processes import is_alive, stage_processes, threads_of, wait_for_an_end
from videollama_server.readiness import EndpointKeeper, why_not_ready
from videollama_server.repository import served_repository
from videollama_server.sandbox.callers import notes_environment
from videollama_server.stages.metrics import figures_environment

logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5  # between looks (a death is told at once), and for Triton to start an ordinary stage itself
_DRAIN_SECONDS = 0.05
_ENDPOINT_SECONDS = 30.0
_STARTING, _STOPPING, _DRAINING = "the server is starting", "the server is stopping", "the server takes no questions"
_RENEWING = "the server is being started again"
_RENEW_SECONDS = 5.0  # for running answers; callers who come meanwhile wait 15 s
_CALL_THREADS = 160  # of a Python stage for its calls to others; each running answer of the entry holds one or two


@dataclass
class ServerOptions:
    host: str = "127.0.0.1"
    grpc_port: int = 8001  # 0 picks a free one
    http_port: int | None = None  # of read-only HTTP: health and metrics
    log: Path | None = None
    media_cache_megabytes: int = KEPT_BYTES // 2**20  # 0 keeps nothing
    start_seconds: float = 300.0
    drain_delay_seconds: float = 0.0  # not ready, and still answering, before the drain begins
    drain_seconds: float = 30.0
    expose_ensemble: bool = False
    expose_stages: bool = False
    access: Access = field(default_factory=Access)
    llm: str = "bundle"  # its own engine, or vllm: what runs the language model
    vllm_arg: tuple[str, ...] = ()  # NAME=VALUE, engine arguments for vLLM
    decoder: str = DECODERS[0]  # of video files
    log_style: LogStyle = LogStyle()
    otlp_endpoint: str | None = None  # URL of a collector; None: what OpenTelemetry's variables say
    media_policy: MediaPolicy = field(default_factory=MediaPolicy)  # which URLs may stand for media


@dataclass
class TritonServer:
    """A running server on a bundle. Use as a context manager, or `start` and `stop`."""

    bundle: Path
    options: ServerOptions = field(default_factory=ServerOptions)

    def start(self) -> "TritonServer":
        """Returns when every model is ready. Raises: ArtifactMismatch, ServerFailed with the stage's own reason."""
        bundle = Bundle.open(self.bundle)
        self._world_size, self._pool_bytes = bundle.world_size, bundle.pool_bytes
        self._has_engine = bundle.language_engine.is_backend
        if "vllm" in (self.options.llm, bundle.llm_engine):
            check_vllm(bundle, self.options.vllm_arg)
        elif self.options.vllm_arg:
            raise InvalidRequest("--vllm-arg came without --llm vllm; add it, or leave the argument out")
        frame_decoder(self.options.decoder)  # one that is not installed is refused before anything is begun
        with_endpoint({}, self.options.otlp_endpoint)  # likewise
        check_machine()
        self._runtime = Runtime(executable=not in_container())
        try:
            self._repository = served_repository(bundle, self._runtime.folder)
            self._start()
        except BaseException:
            self.kill()
            raise
        return self

    def _start(self) -> None:
        options = self.options
        wanted = {"--grpc-port": options.grpc_port}
        if options.http_port is not None:
            wanted["--http-port"] = options.http_port
        self.grpc_port, *others = choose_ports(options.host, wanted)
        self.http_port = others[0] if others else None
        self.log = options.log or self._runtime.folder / "server.log"
        self._sockets = Sockets(self._runtime.folder)
        self._triton = TritonProcess(self._sockets, self.log, self._runtime, self._has_engine)
        self._installation = find_installation(self._runtime.folder)
        endpoint = EndpointProcess(self._endpoint_config(), self._runtime.folder, self.log)
        self._endpoint, self._phase = EndpointKeeper(endpoint, self._look), _STARTING
        self._launch(self._endpoint.start)

    def _endpoint_config(self) -> EndpointConfig:
        options = self.options
        http = "" if self.http_port is None else f"{options.host}:{self.http_port}"
        triton, metrics = self._sockets.grpc_target, str(self._sockets.metrics)
        where = self.address, http, triton, metrics
        return EndpointConfig(*where, self._exposed, options.expose_stages, options.access, options.log_style)

    def _look(self) -> Told:
        """What the endpoint is told."""
        why = self._phase or why_not_ready(self._triton.pid, self._stages)
        return Told(why, self._phase not in (_DRAINING, _RENEWING), self._phase == _RENEWING)

    def _launch(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Returns when Triton and the endpoint are ready. `meanwhile` runs while the stages load."""
        self._phase = _STARTING
        command, environment = self._command(self._installation), self._environment()
        try:
            self._triton.start(command, environment, self.options.start_seconds, meanwhile)
        except ServerFailed as error:
            raise ServerFailed(f"{error} (log: {self.options.log or kept_copy(self.log)})") from error
        self._closing = threading.Event()
        self._stages = stage_processes(self._triton.pid)
        self._wanted = Counter(self._stages.values())
        self._phase, self.is_renewed, self._threads = "", False, 0
        threading.Thread(target=self._supervise, args=(self._closing,), name="supervisor", daemon=True).start()
        self._endpoint.wait_until_ready(_ENDPOINT_SECONDS, self.is_running)

    def _command(self, installation: Installation) -> list[str]:
        words = [
            str(installation.binary),
            f"--model-repository={self._repository}",
            f"--backend-directory={installation.backends}",
            *self._sockets.words(),
            "--model-control-mode=explicit",
            *(f"--load-model={stage}" for stage in loaded_stages(self._exposed)),
            f"--backend-config=python,thread-pool-size={_CALL_THREADS}",
            "--exit-timeout-secs=5",
            f"--grpc-header-forward-pattern={'|'.join((TRACEPARENT, MEASURED, *RESERVED))}",
        ]
        return with_ranks(words, self._world_size, self._pool_bytes, self._runtime.prefix)

    def _environment(self) -> dict[str, str]:
        options = self.options
        found = stage_environment(self._installation, self._sockets.grpc_target, options.llm, options.decoder)
        direct = {} if self._has_engine else {SOCKET_VARIABLE: str(self._sockets.language_model)}
        return (
            with_endpoint(found, options.otlp_endpoint)
            | direct
            | {VARIABLE: json.dumps(parse(options.vllm_arg))}
            | {CACHE_VARIABLE: str(options.media_cache_megabytes * 2**20)}
            | options.media_policy.environment()
            | options.log_style.environment()
            | notes_environment(self._runtime.folder)
            | figures_environment(self._sockets.figures)
        )

    @property
    def _exposed(self) -> tuple[str, ...]:
        return exposed_models(self.options.expose_ensemble, self.options.expose_stages)

    @property
    def address(self) -> str:
        return f"{self.options.host}:{self.grpc_port}"

    # --- while it runs ---

    def is_running(self) -> bool:
        return self._triton.is_running()

    def reload_keys(self) -> None:
        """Read the file of API keys again."""
        self._endpoint.reload_keys()

    def wait(self) -> int:
        """Until the server ends by itself; its exit code."""
        return self._triton.wait()

    def _supervise(self, closing: threading.Event) -> None:
        """Start stages again whose process died.

        Triton 2.51 does so by itself only for an ordinary (not decoupled) model that dies while it works. Every other
        stage is loaded anew; requests that the other processes of an ordinary stage work on end first.
        """
        while self.is_running():
            wait_for_an_end(self._stages, _LOOK_SECONDS)
            if closing.is_set():
                return
            with suppress(OSError):  # a full disk, say
                rotate(self.log)
            if self._is_worn():
                self._renew()
                return
            dead = {stage for pid, stage in self._stages.items() if not is_alive(pid)}
            if not dead:
                continue
            if not any(contract.STAGES[stage].decoupled for stage in dead):
                closing.wait(_LOOK_SECONDS)
            alive = stage_processes(self._triton.pid)
            missing = set(self._wanted - Counter(alive.values()))  # some that live end soon: Triton unloads them still
            if not missing:
                self._stages = alive
                continue
            logger.warning("the process of %s died; starting it again", ", ".join(sorted(missing)))
            try:
                if self._has_engine and contract.ENTRY.name in missing and self._running_requests():
                    # Nobody reads what the engine's backend still says to the dead process, and an unread response blocks
                    # it for everybody: it goes with its caller.
                    missing.add(contract.LANGUAGE_MODEL.name)
                for stage in sorted(missing):
                    self._triton.load_again(stage, self.options.start_seconds)
                self._threads = threads_of(self._triton.pid)
            except OSError as error:
                logger.error("%s cannot be started again: %s", ", ".join(sorted(missing)), error)
                closing.wait(_LOOK_SECONDS)

    def _is_worn(self) -> bool:
        """What a dead decoupled stage held stays in Triton 2.51, 163 threads at least (docs/architecture.md)."""
        with suppress(OSError):
            return self._threads > MOST_THREADS or (self._threads > WORN_THREADS and not self._running_requests())
        return False

    def _renew(self) -> None:
        """End Triton in order; who waits for it starts it again."""
        self.is_renewed = True
        logger.warning("stages were started again so often that Triton has %d threads; starting it anew", self._threads)
        try:
            self._drain(_RENEWING, _RENEW_SECONDS)
        except OSError as error:
            logger.warning("the server does not drain: %s", error)
        self._triton.ask_to_end()

    def _running_requests(self) -> int:
        return self._triton.control.running_requests(contract.ENTRY.name)

    # --- the end ---

    def stop(self) -> None:
        """Be not ready; refuse new questions after drain_delay_seconds; let running ones end, at most drain_seconds."""
        self._closing.set()
        self._phase, deadline = _STOPPING, time.monotonic() + self.options.drain_delay_seconds
        try:
            self._endpoint.tell()
            while time.monotonic() < deadline and self.is_running():
                time.sleep(_DRAIN_SECONDS)
            self._drain(_DRAINING, self.options.drain_seconds)
        except OSError as error:
            logger.warning("the server does not drain: %s", error)
        self.kill()

    def _drain(self, phase: str, seconds: float) -> None:
        """Refuse new requests, and wait for those on their way."""
        self._phase = phase
        deadline = time.monotonic() + seconds
        while self._endpoint.tell().pending and time.monotonic() < deadline and self.is_running():
            time.sleep(_DRAIN_SECONDS)

    def restart(self) -> None:
        """Start a server that ended by itself again, on the same ports. Raises: ServerFailed."""
        self._closing.set()
        self._triton.end()
        self._launch()

    def kill(self) -> None:
        """End the server's processes now, and remove what it wrote."""
        if hasattr(self, "_endpoint"):
            self._endpoint.close()
        if hasattr(self, "_triton"):
            self._triton.end()
        self._runtime.remove()

    def __enter__(self) -> "TritonServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
