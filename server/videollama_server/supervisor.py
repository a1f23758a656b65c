"""Start a Triton server on a bundle, keep its stages alive, and stop it without losing an answer."""

import ctypes
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from videollama_core.engines.bundle import REPOSITORY, Bundle
from videollama_core.protocol import contract
from videollama_core.protocol.contract import RUNNING_METRIC
from videollama_core.protocol.errors import ArtifactMismatch, ServerFailed
from videollama_core.video_decoders import DECODERS, frame_decoder
from videollama_server.installation import Installation, find_installation, stage_environment
from videollama_server.multi_gpu import with_ranks

logger = logging.getLogger(__name__)
_ADMIN = "vl2-admin"  # header that opens the model repository's API, which can run code, to this process alone
_SUPERVISE_SECONDS = 0.5
_CALL_THREADS = 160  # of a Python stage for its calls to others; each running answer of the entry holds one or two
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
    llm: str = "own"  # or vllm: what runs the language model
    decoder: str = DECODERS[0]  # of video files


def check_vllm(bundle: Bundle) -> None:
    """Raises: ArtifactMismatch, ServerFailed where vLLM cannot take the decoder's place."""
    if bundle.engine == "tensorrt":
        raise ArtifactMismatch(
            f"{bundle.root} was converted for TensorRT-LLM, which has a container of its own; --llm vllm serves what was "
            "converted with --engine torch or onnx"
        )
    if importlib.util.find_spec("vllm") is None:
        raise ServerFailed(
            "--llm vllm was asked for, and this Python has no vllm; install it as docs/gpu.md says, or leave --llm out"
        )


def _reachable(host: str) -> str:
    """Where a server that listens on `host` is found from its own machine."""
    return "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104: compared, not bound


@dataclass
class TritonServer:
    """A running server on a bundle. Use as a context manager, or `start` and `stop`."""

    bundle: Path
    options: ServerOptions = field(default_factory=ServerOptions)

    def start(self) -> "TritonServer":
        """Returns when every model is ready. Raises: ArtifactMismatch, ServerFailed with the stage's own reason."""
        bundle = Bundle.open(self.bundle)
        self._world_size, self._pool_bytes = bundle.world_size, bundle.pool_bytes
        if self.options.llm == "vllm":
            check_vllm(bundle)
        frame_decoder(self.options.decoder)  # one that is not installed is refused before anything is begun
        self._runtime = Path(tempfile.mkdtemp(prefix="vl2-serve-"))
        try:
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
        self._secret = secrets.token_urlsafe(24)
        self.log = options.log or self._runtime / "server.log"
        self._installation = find_installation(self._runtime)
        self._launch()

    def _launch(self) -> None:
        try:
            log: IO[bytes] = self.log.open("ab")
        except OSError as error:
            raise ServerFailed(
                f"the log {self.log} cannot be written: {error.strerror}; choose another with --log"
            ) from error
        with log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command(self._installation),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=stage_environment(
                    self._installation,
                    f"{_reachable(self.options.host)}:{self.grpc_port}",
                    self.options.llm,
                    self.options.decoder,
                ),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then drains
                preexec_fn=_die_with_parent,
            )
        self._wait_until_ready()
        self._closing = threading.Event()
        self._stage_pids = self._find_stage_pids()
        threading.Thread(target=self._supervise, args=(self._closing,), name="supervisor", daemon=True).start()

    def _command(self, installation: Installation) -> list[str]:
        options = self.options
        words = [
            str(installation.binary),
            f"--model-repository={(self.bundle / REPOSITORY).resolve()}",
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
            f"--grpc-restricted-protocol=model-repository,shared-memory:{_ADMIN}={self._secret}",
            f"--http-restricted-api=model-repository,shared-memory:{_ADMIN}={self._secret}",
            f"--backend-config=python,thread-pool-size={_CALL_THREADS}",
            "--exit-timeout-secs=5",
        ]
        return with_ranks(words, self._world_size, self._pool_bytes) if self._world_size else words

    @property
    def address(self) -> str:
        return f"{self.options.host}:{self.grpc_port}"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.options.start_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerFailed(
                    f"Triton ended with code {self._process.returncode} while it started. {self._reason()}"
                )
            try:
                self._http("GET", "/v2/health/ready", timeout=2)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise ServerFailed(
            f"Triton was not ready after {self.options.start_seconds:g} s; its log is {self._keep_log()}"
        )

    def _reason(self) -> str:
        """The failing stage's own words, from the log."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            text = file.read().decode(errors="replace")
        failures = re.findall(r"failed to load '(\w+)' version \d+: (.*)", text)
        if failures:
            return "; ".join(f"stage {stage}: {_clean(reason)}" for stage, reason in failures)
        errors = [line for line in text.splitlines() if re.match(r"E\d{4} ", line)]
        return f"{errors[-1] if errors else 'It left no reason.'} (log: {self._keep_log()})"

    def _keep_log(self) -> Path:
        """The log outlives the run when it tells of a failure."""
        if self.options.log is None:
            handle, name = tempfile.mkstemp(prefix="vl2-serve-", suffix=".log")
            os.close(handle)
            shutil.copyfile(self.log, name)
            return Path(name)
        return self.log

    # --- while it runs ---

    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Until the server ends by itself; its exit code."""
        return self._process.wait()

    def _find_stage_pids(self) -> dict[int, str]:
        """Process id -> stage, of every stub of this server."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
                command = (stat.parent / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(parent) != self._process.pid or state in "ZX":
                continue
            script = next((Path(os.fsdecode(part)) for part in command if part.endswith(b"/1/model.py")), None)
            if script is not None and script.parts[-3] in contract.STAGES:
                found[int(stat.parent.name)] = script.parts[-3]
        return found

    def _supervise(self, closing: threading.Event) -> None:
        """Start stages again whose process died.

        Triton 2.51 does so by itself only for an ordinary (not decoupled) model that dies while it works. Every other
        stage is loaded anew; requests that the other processes of an ordinary stage work on end first.
        """
        while not closing.wait(_SUPERVISE_SECONDS) and self.is_running():
            alive = self._find_stage_pids()
            missing = set(Counter(self._stage_pids.values()) - Counter(alive.values()))
            if not missing:
                self._stage_pids = alive
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
                    self._reload(stage)
            except (urllib.error.URLError, OSError) as error:
                logger.error("%s cannot be started again: %s", ", ".join(sorted(missing)), error)

    def _reload(self, stage: str) -> None:
        models = f"/v2/repository/models/{stage}"
        self._http("POST", f"{models}/unload", {"parameters": {"unload_dependents": False}})
        self._http("POST", f"{models}/load", {}, timeout=self.options.start_seconds)

    def _http(self, method: str, path: str, body: dict[str, Any] | None = None, timeout: float = 10) -> bytes:
        request = urllib.request.Request(
            f"http://{self.options.host}:{self.http_port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={_ADMIN: self._secret, "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()

    # --- the end ---

    def stop(self) -> None:
        """Refuse new questions, let running ones end (at most drain_seconds), then stop the server."""
        self._closing.set()
        if self.is_running():
            try:
                self._drain()
            except (urllib.error.URLError, OSError) as error:
                logger.warning("the server does not drain: %s", error)
        self.kill()

    def _drain(self) -> None:
        doors = (contract.ENTRY.name, contract.ENSEMBLE.name)
        for stage in doors:
            self._http("POST", f"/v2/repository/models/{stage}/unload", {"parameters": {"unload_dependents": False}})
        deadline = time.monotonic() + self.options.drain_seconds
        while self._running_requests() and time.monotonic() < deadline and self.is_running():
            time.sleep(0.05)

    def _running_requests(self) -> int:
        """Of the entry, by its own count (its last one if it died): Triton's would go on counting what died with it."""
        with urllib.request.urlopen(f"http://{self.options.host}:{self.metrics_port}/metrics", timeout=10) as response:
            text = response.read().decode()
        return sum(
            int(float(value))
            for value in re.findall(rf'^{RUNNING_METRIC}{{.*"{contract.ENTRY.name}".*}} (\S+)$', text, re.MULTILINE)
        )

    def restart(self) -> None:
        """Start a server that ended by itself again, on the same ports. Raises: ServerFailed."""
        self._closing.set()
        self._end_processes()
        self._launch()

    def kill(self) -> None:
        """End the server's processes now, and remove what it wrote."""
        self._end_processes()
        shutil.rmtree(self._runtime, ignore_errors=True)

    def _end_processes(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # stubs that outlived their server
            except ProcessLookupError:
                pass

    def __enter__(self) -> "TritonServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _die_with_parent() -> None:
    """Linux: the server gets SIGTERM when this process is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def choose_ports(host: str, wanted: dict[str, int]) -> list[int]:
    """A free port for each 0, the others as they are. Raises: ServerFailed if one is taken."""
    held: list[socket.socket] = []
    try:
        for flag, port in wanted.items():
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError) as error:
                raise ServerFailed(
                    f"port {port} of {host} cannot be used ({getattr(error, 'strerror', None) or error}); choose another with {flag}, or 0 for a free one"
                ) from error
        return [probe.getsockname()[1] for probe in held]
    finally:
        for probe in held:
            probe.close()


def _clean(reason: str) -> str:
    """Triton's code word and its traceback marks are noise here."""
    return re.sub(r"^(Internal|Invalid argument|Unavailable): ", "", reason.strip()).strip()
