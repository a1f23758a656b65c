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
from videollama_server.endpoint.state import SupervisorStatus
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
from videollama_server.ports import bracketed, choose_ports
from videollama_server.process import TritonProcess
from videollama_server.processes import is_alive, stage_processes, threads_of, wait_for_an_end
from videollama_server.readiness import EndpointKeeper, why_not_ready
from videollama_server.repository import served_repository
from videollama_server.sandbox.callers import notes_environment
from videollama_server.stages.metrics import metrics_environment

logger = logging.getLogger(__name__)
_CHECK_SECONDS = 0.5  # between checks (a death is noticed at once), and for Triton to restart an ordinary stage itself
_DRAIN_SECONDS = 0.05
_ENDPOINT_SECONDS = 30.0
_STARTING, _STOPPING, _DRAINING = "the server is starting", "the server is stopping", "the server takes no questions"
_RENEWING = "the server is being started again"
_RENEW_SECONDS = 5.0  # for running answers; new callers wait up to 15 s in the meantime
_CALL_THREADS = 160  # of a Python stage, for calls to other stages; each running answer of the entry uses one or two


@dataclass
class ServerOptions:
    """How a server runs. The fields are the options of `vl2 serve`, whose help says more."""

    host: str = "127.0.0.1"
    grpc_port: int = 8001  # 0 picks a free one
    http_port: int | None = None  # read-only HTTP: health and metrics
    log: Path | None = None
    media_cache_megabytes: int = KEPT_BYTES // 2**20  # 0 turns the cache off
    start_seconds: float = 300.0
    drain_delay_seconds: float = 0.0  # not ready but still answering, before the drain begins
    drain_seconds: float = 30.0
    expose_ensemble: bool = False
    expose_stages: bool = False
    access: Access = field(default_factory=Access)
    llm: str = "bundle"  # what runs the language model: the bundle's own engine, or "vllm"
    vllm_arg: tuple[str, ...] = ()  # engine arguments of vLLM, NAME=VALUE
    decoder: str = DECODERS[0]  # of video files
    log_style: LogStyle = LogStyle()
    otlp_endpoint: str | None = None  # URL of a collector; None uses OpenTelemetry's environment variables
    media_policy: MediaPolicy = field(default_factory=MediaPolicy)  # which media URLs may be fetched


@dataclass
class TritonServer:
    """A server on a bundle. Use it as a context manager, or call `start` and `stop`."""

    bundle: Path
    options: ServerOptions = field(default_factory=ServerOptions)

    def start(self) -> "TritonServer":
        """Return when every model is ready. Raises: ArtifactMismatch, InvalidRequest, ServerFailed with a stage's reason."""
        bundle = Bundle.open(self.bundle)
        self._world_size, self._pool_bytes = bundle.world_size, bundle.pool_bytes
        self._has_engine = bundle.language_engine.is_backend
        if "vllm" in (self.options.llm, bundle.llm_engine):
            check_vllm(bundle, self.options.vllm_arg)
        elif self.options.vllm_arg:
            raise InvalidRequest("--vllm-arg needs --llm vllm; add it, or leave --vllm-arg out")
        frame_decoder(self.options.decoder)  # refuse a missing decoder before anything is started
        with_endpoint({}, self.options.otlp_endpoint)  # likewise an invalid endpoint
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
        ports = {"--grpc-port": options.grpc_port}
        if options.http_port is not None:
            ports["--http-port"] = options.http_port
        self.grpc_port, *others = choose_ports(options.host, ports)
        self.http_port = others[0] if others else None
        self.log = options.log or self._runtime.folder / "server.log"
        self._sockets = Sockets(self._runtime.folder)
        self._triton = TritonProcess(self._sockets, self.log, self._runtime, self._has_engine)
        self._installation = find_installation(self._runtime.folder)
        endpoint = EndpointProcess(self._endpoint_config(), self._runtime.folder, self.log)
        self._endpoint, self._phase = EndpointKeeper(endpoint, self._status), _STARTING
        self._launch(self._endpoint.start)

    def _endpoint_config(self) -> EndpointConfig:
        options = self.options
        http = "" if self.http_port is None else f"{bracketed(options.host)}:{self.http_port}"
        triton, metrics = self._sockets.grpc_target, str(self._sockets.metrics)
        addresses = self.address, http, triton, metrics
        return EndpointConfig(*addresses, self._exposed, options.expose_stages, options.access, options.log_style)

    def _status(self) -> SupervisorStatus:
        """The status that is sent to the endpoint."""
        not_ready = self._phase or why_not_ready(self._triton.pid, self._stages)
        return SupervisorStatus(not_ready, self._phase not in (_DRAINING, _RENEWING), self._phase == _RENEWING)

    def _launch(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start Triton, and return when it and the endpoint are ready. `meanwhile` is called while the stages load."""
        self._phase = _STARTING
        command, environment = self._command(self._installation), self._environment()
        try:
            self._triton.start(command, environment, self.options.start_seconds, meanwhile)
        except ServerFailed as error:
            raise ServerFailed(f"{error} (log: {self.options.log or kept_copy(self.log)})") from error
        self._closing = threading.Event()
        self._stages = stage_processes(self._triton.pid)
        self._expected = Counter(self._stages.values())
        self._phase, self.is_renewed, self._threads = "", False, 0
        threading.Thread(target=self._supervise, args=(self._closing,), name="supervisor", daemon=True).start()
        self._endpoint.wait_until_ready(_ENDPOINT_SECONDS, self.is_running)

    def _command(self, installation: Installation) -> list[str]:
        command = [
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
        return with_ranks(command, self._world_size, self._pool_bytes, self._runtime.prefix)

    def _environment(self) -> dict[str, str]:
        options = self.options
        environment = stage_environment(self._installation, self._sockets.grpc_target, options.llm, options.decoder)
        direct = {} if self._has_engine else {SOCKET_VARIABLE: str(self._sockets.language_model)}
        return (
            with_endpoint(environment, options.otlp_endpoint)
            | direct
            | {VARIABLE: json.dumps(parse(options.vllm_arg))}
            | {CACHE_VARIABLE: str(options.media_cache_megabytes * 2**20)}
            | options.media_policy.environment()
            | options.log_style.environment()
            | notes_environment(self._runtime.folder)
            | metrics_environment(self._sockets.stage_metrics)
        )

    @property
    def _exposed(self) -> tuple[str, ...]:
        return exposed_models(self.options.expose_ensemble, self.options.expose_stages)

    @property
    def address(self) -> str:
        return f"{bracketed(self.options.host)}:{self.grpc_port}"

    # --- while it runs ---

    def is_running(self) -> bool:
        return self._triton.is_running()

    def reload_keys(self) -> None:
        """Reread the file of API keys."""
        self._endpoint.reload_keys()

    def wait(self) -> int:
        """Wait until Triton ends by itself, and return its exit code."""
        return self._triton.wait()

    def _supervise(self, closing: threading.Event) -> None:
        """Restart stages whose process died.

        Triton 2.51 does so itself only for an ordinary (not decoupled) model that dies during a request. Every other stage
        is reloaded; requests in the other processes of an ordinary stage finish first.
        """
        while self.is_running():
            wait_for_an_end(self._stages, _CHECK_SECONDS)
            if closing.is_set():
                return
            with suppress(OSError):  # for example a full disk
                rotate(self.log)
            if self._is_worn():
                self._renew()
                return
            dead = {stage for pid, stage in self._stages.items() if not is_alive(pid)}
            if not dead:
                continue
            if not any(contract.STAGES[stage].decoupled for stage in dead):
                closing.wait(_CHECK_SECONDS)
            alive = stage_processes(self._triton.pid)
            missing = set(
                self._expected - Counter(alive.values())
            )  # some of those alive are about to end: Triton is still unloading them
            if not missing:
                self._stages = alive
                continue
            logger.warning("the process of %s died; starting it again", ", ".join(sorted(missing)))
            try:
                if self._has_engine and contract.ENTRY.name in missing and self._running_requests():
                    # An unread response of the engine's backend to the dead entry would block it for all callers, so it is
                    # restarted with the entry.
                    missing.add(contract.LANGUAGE_MODEL.name)
                for stage in sorted(missing):
                    self._triton.load_again(stage, self.options.start_seconds)
                self._threads = threads_of(self._triton.pid)
            except OSError as error:
                logger.error("%s cannot be started again: %s", ", ".join(sorted(missing)), error)
                closing.wait(_CHECK_SECONDS)

    def _is_worn(self) -> bool:
        """Whether Triton needs a restart: 2.51 leaks 163 threads or more per dead decoupled stage (docs/architecture.md)."""
        with suppress(OSError):
            return self._threads > MOST_THREADS or (self._threads > WORN_THREADS and not self._running_requests())
        return False

    def _renew(self) -> None:
        """End Triton in order; the caller of `wait` then restarts it."""
        self.is_renewed = True
        logger.warning("Triton has %d threads after many restarts of stages; restarting it", self._threads)
        try:
            self._drain(_RENEWING, _RENEW_SECONDS)
        except OSError as error:
            logger.warning("the server cannot be drained: %s", error)
        self._triton.ask_to_end()

    def _running_requests(self) -> int:
        return self._triton.control.running_requests(contract.ENTRY.name)

    # --- the end ---

    def stop(self) -> None:
        """Report not ready, refuse new questions after drain_delay_seconds, and end after at most drain_seconds more."""
        self._closing.set()
        self._phase, deadline = _STOPPING, time.monotonic() + self.options.drain_delay_seconds
        try:
            self._endpoint.exchange()
            while time.monotonic() < deadline and self.is_running():
                time.sleep(_DRAIN_SECONDS)
            self._drain(_DRAINING, self.options.drain_seconds)
        except OSError as error:
            logger.warning("the server cannot be drained: %s", error)
        self.kill()

    def _drain(self, phase: str, seconds: float) -> None:
        """Refuse new requests, and wait at most so many seconds for active ones."""
        self._phase = phase
        deadline = time.monotonic() + seconds
        while self._endpoint.exchange().pending and time.monotonic() < deadline and self.is_running():
            time.sleep(_DRAIN_SECONDS)

    def restart(self) -> None:
        """Restart a server that ended by itself, on the same ports. Raises: ServerFailed."""
        self._closing.set()
        self._triton.end()
        self._launch()

    def kill(self) -> None:
        """End the server's processes at once, and remove its files."""
        if hasattr(self, "_endpoint"):
            self._endpoint.close()
        if hasattr(self, "_triton"):
            self._triton.end()
        self._runtime.remove()

    def __enter__(self) -> "TritonServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
