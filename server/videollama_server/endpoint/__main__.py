"""The endpoint process, `python -m videollama_server.endpoint CONFIG`. Only the supervisor starts it."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

import grpc

from videollama_core.event_loop import loop_factory
from videollama_core.protocol import limits
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.telemetry.logs import log_to_stderr
from videollama_server.endpoint.access import Access
from videollama_server.endpoint.api_keys import ApiKeys
from videollama_server.endpoint.config import EndpointConfig
from videollama_server.endpoint.forward import Forwarder
from videollama_server.endpoint.read_only_http import ReadOnlyHttp
from videollama_server.endpoint.state import State, listen
from videollama_server.http2.channel import Channel

logger = logging.getLogger(__name__)
_WATCH_SECONDS = 1.0  # between two checks of a Triton that answers
_SEEK_SECONDS = 0.05  # and of one that does not
_LAST_SECONDS = 0.5  # grace period at the end, for responses that are already written
_MESSAGE_BYTES = limits.MEDIA_BYTES.value + limits.ENVELOPE_BYTES.value * 4
_SERVER_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", limits.METADATA_BYTES.value),
    ("grpc.absolute_max_metadata_size", limits.METADATA_BYTES.value),
    ("grpc.max_concurrent_streams", limits.STREAMS.value),
    # Detects callers whose machine is gone, so that their requests end.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 3_600_000),
    # No compression: a small message could expand to gigabytes.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.so_reuseport", 0),
]
_TRITON_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),  # over a Unix socket, reconnecting is cheap
]


def _credentials(access: Access) -> grpc.ServerCredentials | None:
    """Raises: OSError if a file cannot be read."""
    if access.tls_cert is None or access.tls_key is None:
        return None
    pair = Path(access.tls_key).read_bytes(), Path(access.tls_cert).read_bytes()
    authority = None if access.tls_client_ca is None else Path(access.tls_client_ca).read_bytes()
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


async def serve(config: EndpointConfig) -> None:
    """Serve until the supervisor is gone. Raises: InvalidRequest, OSError, RuntimeError if it cannot start."""
    state = State()
    access = config.access
    file = None if access.api_keys is None else Path(access.api_keys)
    keys = ApiKeys(file, access.key_concurrent, access.key_per_minute, marks=not access.isolate_media)
    # The tensors of exposed stages are larger than media.
    message_bytes = -1 if config.with_statistics else _MESSAGE_BYTES
    server = grpc.aio.server(
        options=[*_SERVER_OPTIONS, ("grpc.max_receive_message_length", message_bytes)],
        maximum_concurrent_rpcs=limits.CALLS.value,
    )
    async with grpc.aio.insecure_channel(config.triton, options=_TRITON_OPTIONS) as triton:
        streams = Channel(config.triton)
        forwarder = Forwarder(triton, streams, state, keys, config.exposed, config.with_statistics)
        server.add_generic_rpc_handlers((forwarder,))
        credentials = _credentials(access)
        if credentials is None:
            server.add_insecure_port(config.address)
        else:
            server.add_secure_port(config.address, credentials)
        await server.start()
        if config.http_address:
            host, _, port = config.http_address.rpartition(":")
            await ReadOnlyHttp(state, config.metrics).start(host.strip("[]"), int(port))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, keys.reload_if_changed, True)
        watching = asyncio.create_task(_watch(state, forwarder, keys))
        await listen(state)
        watching.cancel()
        await server.stop(_LAST_SECONDS)
        streams.close()


async def _watch(state: State, forwarder: Forwarder, keys: ApiKeys) -> None:
    while True:
        keys.reload_if_changed()
        await forwarder.watch_triton()
        await asyncio.sleep(_WATCH_SECONDS if state.triton_answers else _SEEK_SECONDS)


def main() -> int:
    config = EndpointConfig.read(Path(sys.argv[1]))
    log_to_stderr(logging.INFO, "%(asctime)s endpoint %(levelname)s %(message)s", "endpoint", config.log)
    # Ctrl-C and SIGTERM are left to the supervisor, which ends this process once the running answers are complete.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve(config))
    except (InvalidRequest, OSError, RuntimeError) as error:
        print(f"vl2-endpoint: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
