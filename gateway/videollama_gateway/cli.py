"""The command `vl2 gateway`."""

import asyncio
import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from videollama_client.cli.connection_options import connection_options
from videollama_core.event_loop import loop_factory
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.telemetry.logs import LogStyle, log_to_stderr
from videollama_core.telemetry.meter import open_meter
from videollama_core.telemetry.options import telemetry_options
from videollama_core.telemetry.traces import open_tracer, with_endpoint

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from videollama_gateway.servers import Servers

_SERVICE = "videollama2-gateway"  # service.name in telemetry
_STOP_SIGNALS = signal.SIGTERM, signal.SIGINT


@click.command(
    epilog="Example: vl2 gateway --server localhost:8001; then OPENAI_BASE_URL=http://localhost:8080/v1 with any OpenAI client"
)
@click.option(
    "--server",
    "named",
    multiple=True,
    metavar="[MODEL=]HOST:PORT",
    help="Forward to the server at this gRPC address; dns:NAME:PORT means a server at each address of NAME, looked up every second. Repeat it for several servers of one model, or for several models. The default is --url.",
)
@click.option(
    "--servers-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Also forward to the servers in this file: one per line, in the format of --server. It is reread every second.",
)
@connection_options
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Listen on this address; 0.0.0.0 means all interfaces."
)
@click.option("--port", default=8080, show_default=True, help="Listen on this port; 0 picks a free one.")
@click.option(
    "--examples",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Offer the media of this folder on the web page.",
)
@telemetry_options
@click.option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    help="Refuse request bodies larger than this; the default is 768 MiB.",
)
def gateway(
    named: tuple[str, ...],
    servers_file: Path | None,
    connection: dict[str, Any],
    host: str,
    port: int,
    examples: Path | None,
    otlp_endpoint: str | None,
    log_style: LogStyle,
    max_body_bytes: int | None,
) -> None:
    """Serve the OpenAI API (chat completions with video, pictures and audio) and a web page in front of running servers."""
    address = connection.pop("address")
    if not named and servers_file is None:
        named = (address,)
    environment = with_endpoint(os.environ, otlp_endpoint)
    os.environ.update(log_style.environment())
    log_to_stderr(logging.INFO, "%(asctime)s gateway %(levelname)s %(message)s", "gateway", log_style)
    listening = _listen(host, port)
    stopping = threading.Event()
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: stopping.set())

    from videollama_gateway.answer_route import MAX_BODY_BYTES
    from videollama_gateway.app import make_app
    from videollama_gateway.request_telemetry import Telemetry
    from videollama_gateway.servers import Servers

    servers = Servers.connect(named, connection, servers_file)
    telemetry = Telemetry(tracer=open_tracer(_SERVICE, environment), meter=open_meter(_SERVICE, environment))
    app = make_app(servers, telemetry, max_body_bytes or MAX_BODY_BYTES, examples)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(app, servers, listening, stopping))
    telemetry.close()


async def _serve(app: "Starlette", servers: "Servers", listening: socket.socket, stopping: threading.Event) -> None:
    """Serve until a signal to stop; one that came before, of which `stopping` tells, ends it at once."""
    import uvicorn

    from videollama_gateway.http import LimitedHttp

    await servers.discover()
    config = uvicorn.Config(
        app,
        http=LimitedHttp,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=30,
    )
    server = uvicorn.Server(config)
    # uvicorn installs its own handlers only some time after the address is printed; no signal may be lost in between.
    for number in _STOP_SIGNALS:
        signal.signal(number, server.handle_exit)
    listen_host, listen_port = listening.getsockname()[:2]
    address = f"http://{f'[{listen_host}]' if ':' in listen_host else listen_host}:{listen_port}"
    click.echo(f"the OpenAI API is at {address}/v1, a web page at {address}/, models: {', '.join(servers.models)}")
    if not stopping.is_set():
        await server.serve(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. Raises: InvalidRequest if the address cannot be bound."""
    if not host:  # bind() takes it for every interface
        raise InvalidRequest("--host is empty; name an address, or 0.0.0.0 for every interface")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With IPPROTO_TCP named, asyncio turns off Nagle's algorithm, which would delay the first text by 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequest(f"cannot listen on {host}:{port}: {reason}; name another --port or --host") from error
    return listening
