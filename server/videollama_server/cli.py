"""The command `vl2 serve`: run a Triton server on a bundle until it is stopped."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click

from videollama_core.engines.bundle import Bundle
from videollama_core.media.video_decoders import DECODERS
from videollama_core.protocol.errors import ServerFailed
from videollama_core.telemetry.logs import LogStyle, log_to_stderr
from videollama_core.telemetry.options import telemetry_options
from videollama_core.telemetry.traces import with_endpoint
from videollama_server.endpoint.access import access_of_options, access_options
from videollama_server.fetch.policy import policy_of_options
from videollama_server.gateway_process import GatewayProcess, read_openai
from videollama_server.ports import bracketed
from videollama_server.supervisor import ServerOptions, TritonServer

_DEFAULTS = ServerOptions()
_RETRY_SECONDS = 0.05
DEATHS_ALLOWED, DEATHS_SECONDS = 3, 300.0  # a server that dies more often is not restarted
_MOST_SECONDS = 10_000_000


def _seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 <= value <= _MOST_SECONDS:  # False for NaN too, which click.FloatRange lets pass
        raise click.BadParameter(f"{value:g} is not a time from 0 to {_MOST_SECONDS} seconds", context, parameter)
    return value


@click.command(epilog="Example: vl2 serve build/tiny --grpc-port 0")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--host", default=_DEFAULTS.host, show_default=True, help="Listen on this address; 0.0.0.0 means all interfaces."
)
@click.option(
    "--grpc-port", default=_DEFAULTS.grpc_port, show_default=True, help="Serve gRPC on this port; 0 picks a free one."
)
@click.option(
    "--http-port",
    type=int,
    help="Serve read-only HTTP (health and metrics) on this port; 0 picks a free one. The default is none.",
)
@click.option(
    "--openai",
    metavar="[HOST:]PORT",
    help="Also start a gateway, which serves the OpenAI API and a web page at this address; 0 picks a free port. The default is none.",
)
@click.option(
    "--examples",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Offer the media of this folder on the web page; needs --openai.",
)
@click.option("--expose-ensemble", is_flag=True, help="Let callers use the model `ensemble`, too.")
@click.option(
    "--expose-stages", is_flag=True, help="Let callers use every stage and Triton's statistics, for measurements."
)
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Write the server's log to this file.")
@click.option(
    "--media-cache-megabytes",
    type=click.IntRange(min=0),
    default=_DEFAULTS.media_cache_megabytes,
    show_default=True,
    help="Cache media tokens in this much memory, so that media is encoded only once; 0 turns the cache off.",
)
@click.option(
    "--start-seconds",
    default=_DEFAULTS.start_seconds,
    callback=_seconds,
    show_default=True,
    help="Wait at most this many seconds for the models to load.",
)
@click.option(
    "--drain-delay-seconds",
    default=_DEFAULTS.drain_delay_seconds,
    callback=_seconds,
    show_default=True,
    help="When stopping, report not ready but keep answering for this many seconds, before questions are refused.",
)
@click.option(
    "--drain-seconds",
    default=_DEFAULTS.drain_seconds,
    callback=_seconds,
    show_default=True,
    help="When stopping, wait at most this many seconds for running answers.",
)
@click.option(
    "--llm",
    type=click.Choice(("bundle", "vllm")),
    default=_DEFAULTS.llm,
    show_default=True,
    help="Run the language model on the engine that the bundle was converted for, or on vLLM, if it is installed.",
)
@click.option(
    "--vllm-arg",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set an engine argument of vLLM, such as tensor_parallel_size=2, with --llm vllm. Repeat it for several.",
)
@click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    default=_DEFAULTS.decoder,
    show_default=True,
    help="Decode video files with this decoder: decord, which must be installed, is the reference's; nvdec decodes on an NVIDIA GPU, with less of the sandbox (docs/gpu.md).",
)
@click.option(
    "--allow-media-hosts",
    metavar="HOST[,HOST...]",
    help="Fetch media by URL from these hosts: exact names or *.suffix, with :PORT unless it is the default. The default is no host.",
)
@click.option("--allow-media-http", is_flag=True, help="Fetch from those hosts over http as well as https.")
@click.option(
    "--media-root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Accept file:// URLs of files below this folder. The default is none.",
)
@telemetry_options
@access_options
def serve(
    bundle: Path,
    openai: str | None,
    examples: Path | None,
    allow_media_hosts: str | None,
    allow_media_http: bool,
    media_root: Path | None,
    log_style: LogStyle,
    **options: Any,
) -> None:
    """Start a Triton server on BUNDLE, a folder that `vl2 convert` made, and print its addresses.

    Ctrl-C or SIGTERM refuses new questions, lets running answers finish, and stops.
    """
    log_to_stderr(logging.WARNING, "%(levelname)s: %(message)s", "serve", log_style)
    Bundle.open(bundle)  # report an invalid bundle before anything is started
    policy = policy_of_options(allow_media_hosts, allow_media_http, media_root)
    access = access_of_options(options)
    gateway_address = read_openai(openai, access, examples)
    server = TritonServer(bundle, ServerOptions(**options, media_policy=policy, access=access, log_style=log_style))
    for warning in access.warnings(server.options.host):
        click.echo(f"warning: {warning}", err=True)
    _stop_at_signals()
    click.echo(f"starting Triton on {bundle} ...", err=True)
    environment = with_endpoint(os.environ, server.options.otlp_endpoint) | log_style.environment()
    gateway = None
    try:
        with server:
            try:
                signal.signal(signal.SIGHUP, lambda *_: server.reload_keys())
                if gateway_address is not None:
                    gateway = GatewayProcess(gateway_address, server.address, environment)
                _print_addresses(server, "" if gateway is None else gateway.start())
                _keep_running(server)
            except _Stop:
                click.echo("stopping: waiting for running answers ...", err=True)
        click.echo("stopped", err=True)
    except _Stop:
        pass  # stopped while starting
    finally:
        if gateway is not None:
            gateway.close()  # after the server, so that its running answers can finish


def _print_addresses(server: TritonServer, url: str) -> None:
    host = bracketed(server.options.host)
    click.echo(f"gRPC     {host}:{server.grpc_port}")
    if server.http_port is not None:
        click.echo(f"HTTP     http://{host}:{server.http_port}/v2/health/ready")
        click.echo(f"metrics  http://{host}:{server.http_port}/metrics")
    if url:
        click.echo(f"OpenAI   {url}")
    click.echo(f"log      {server.log}")
    click.echo(f'ready: vl2 ask VIDEO "question" --url {host}:{server.grpc_port}')
    sys.stdout.flush()


def _keep_running(server: TritonServer) -> None:
    """Restart the server whenever it ends by itself: a stage that dies at the wrong moment aborts Triton 2.51 as a whole.

    Raises: ServerFailed if it ends too often.
    """
    deaths: list[float] = []
    while True:
        code = server.wait()
        if server.is_renewed:
            server.restart()
            continue
        now = time.monotonic()
        deaths = [*(time_of_death for time_of_death in deaths if now - time_of_death < DEATHS_SECONDS), now]
        if len(deaths) > DEATHS_ALLOWED:
            log = server.options.log or "gone: name one with --log"
            raise ServerFailed(f"Triton ended by itself {len(deaths)} times, now with code {code}; its log is {log}")
        click.echo(f"Triton ended by itself with code {code}; restarting it", err=True)
        server.restart()


class _Stop(BaseException):
    """The operator has asked the server to stop."""


def _stop_at_signals() -> None:
    """Make the first SIGTERM or SIGINT raise _Stop in the main thread, and ignore later ones.

    If it arrives where Python swallows exceptions (in a finalizer or a hook after a fork), an alarm soon raises it again.
    """
    stopping = threading.Event()

    def stop(number: int, _: object) -> None:
        if number == signal.SIGALRM or not stopping.is_set():
            stopping.set()
            raise _Stop

    def raise_later(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is not _Stop:
            sys.__unraisablehook__(unraisable)
            return
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, stop)
    sys.unraisablehook = raise_later
