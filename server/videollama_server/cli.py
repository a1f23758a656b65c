"""`vl2 serve`: a Triton server on a bundle, until it is told to stop."""

import logging
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
from videollama_server.supervisor import ServerOptions, TritonServer

_DEFAULTS = ServerOptions()
DEATHS_ALLOWED, DEATHS_SECONDS = 3, 300.0  # a server that dies more often is given up


@click.command(epilog="Example: vl2 serve build/tiny --grpc-port 0")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--host", default=_DEFAULTS.host, show_default=True, help="Address to listen on; 0.0.0.0 for every network."
)
@click.option("--grpc-port", default=_DEFAULTS.grpc_port, show_default=True, help="0 picks a free one.")
@click.option("--http-port", default=_DEFAULTS.http_port, show_default=True, help="0 picks a free one.")
@click.option("--metrics-port", default=_DEFAULTS.metrics_port, show_default=True, help="0 picks a free one.")
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="File for the server's log.")
@click.option(
    "--cache-megabytes",
    default=_DEFAULTS.cache_megabytes,
    show_default=True,
    help="Memory for media tokens that were seen.",
)
@click.option(
    "--start-seconds", default=_DEFAULTS.start_seconds, show_default=True, help="How long the models may load."
)
@click.option(
    "--drain-seconds",
    default=_DEFAULTS.drain_seconds,
    show_default=True,
    help="How long running answers may take at the end.",
)
@click.option(
    "--llm",
    type=click.Choice(("bundle", "vllm")),
    default=_DEFAULTS.llm,
    show_default=True,
    help="What runs the language model: the engine that the bundle was converted for, or vLLM where it is installed.",
)
@click.option(
    "--vllm-arg",
    multiple=True,
    metavar="NAME=VALUE",
    help="With --llm vllm: an engine argument of vLLM, such as tensor_parallel_size=2; repeat for more.",
)
@click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    default=_DEFAULTS.decoder,
    show_default=True,
    help="What decodes video files; decord is the reference's own, where it is installed.",
)
def serve(bundle: Path, **options: Any) -> None:
    """Start a Triton server on BUNDLE, a folder that `vl2 convert` made, and print its addresses.

    Ctrl-C or SIGTERM refuses new questions, lets running answers end, and stops.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    Bundle.open(bundle)  # what is wrong with it is said before anything is begun
    server = TritonServer(bundle, ServerOptions(**options))
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _interrupt(stopping))
    click.echo(f"starting Triton on {bundle} ...", err=True)
    try:
        server.start()
    except _Stop:
        return
    host = server.options.host
    click.echo(f"gRPC     {host}:{server.grpc_port}")
    click.echo(f"HTTP     http://{host}:{server.http_port}")
    click.echo(f"metrics  http://{host}:{server.metrics_port}/metrics")
    click.echo(f"log      {server.log}")
    click.echo(f'ready: vl2 ask VIDEO "question" --url {host}:{server.grpc_port}')
    sys.stdout.flush()
    try:
        _keep_running(server)
    except _Stop:
        click.echo("stopping: running answers may end ...", err=True)
        server.stop()
        click.echo("stopped", err=True)


def _keep_running(server: TritonServer) -> None:
    """Start the server again when it ends by itself: killing a stage at the wrong moment aborts Triton 2.51 as a whole.

    Raises: ServerFailed when it ends too often.
    """
    deaths: list[float] = []
    try:
        while True:
            code = server.wait()
            now = time.monotonic()
            deaths = [*(then for then in deaths if now - then < DEATHS_SECONDS), now]
            if len(deaths) > DEATHS_ALLOWED:
                log = server.options.log or "gone: name one with --log"
                raise ServerFailed(
                    f"Triton ended by itself {len(deaths)} times, now with code {code}; its log is {log}"
                )
            click.echo(f"Triton ended by itself with code {code}; starting it again", err=True)
            server.restart()
    except ServerFailed:
        server.kill()
        raise


class _Stop(BaseException):
    """The operator wants the server to stop."""


def _interrupt(stopping: threading.Event) -> None:
    """The first signal stops in order; later ones are ignored while that is under way."""
    if not stopping.is_set():
        stopping.set()
        raise _Stop
