"""The endpoint while no Triton is behind it: a real endpoint process, and a client that was never here before."""

import time

import pytest

from videollama_client import Client
from videollama_core.protocol.errors import StageRestarting
from videollama_server.endpoint.access import Access
from videollama_server.endpoint.config import EndpointConfig
from videollama_server.endpoint.process import EndpointProcess
from videollama_server.endpoint.state import Told
from videollama_server.ports import choose_ports


@pytest.mark.parametrize("accepts", [True, False])
def test_a_new_caller_waits_while_triton_is_started_again(accepts, tmp_path):
    """It was told at once that no server answers, or that it is shutting down: in a soak, 227 of 300 questions fell into the seconds
    of one restart."""
    (port,) = choose_ports("127.0.0.1", {"--grpc-port": 0})
    triton, metrics = f"unix:{tmp_path / 'grpc:1'}", str(tmp_path / "metrics")
    config = EndpointConfig(f"127.0.0.1:{port}", "", triton, metrics, ("videollama2",), False, Access())
    endpoint = EndpointProcess(config, tmp_path, tmp_path / "log")
    endpoint.launch(Told("the server is being started again", accepts, restarts=True))
    try:
        with Client(f"127.0.0.1:{port}") as client:
            assert not client.health()
        with Client(f"127.0.0.1:{port}") as client:
            began = time.monotonic()
            with pytest.raises(StageRestarting, match="the server is being started again; send the request again"):
                client.ask("Who?", timeout=0.8)
            assert time.monotonic() - began > 0.7
    finally:
        endpoint.end()
