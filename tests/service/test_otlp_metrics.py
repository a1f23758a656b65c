"""The metrics that a real server and gateway send to a collector: each request counts once, wherever it came in."""

import time

import httpx2
import pytest

from conftest import MEDIA
from service.servers import gateway_of, serving
from videollama_core.protocol.errors import UnreadableMedia

VARIANT = "qwen2-clip-8f"
DURATION, FIRST, PER_TOKEN = (
    f"gen_ai.server.{name}" for name in ("request.duration", "time_to_first_token", "time_per_output_token")
)
GATEWAY, SERVER = "videollama2-gateway", "videollama2-server"
BODY = {"model": "videollama2", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 3}
BROKEN = [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, {"type": "text", "text": "Who?"}]


@pytest.fixture(scope="module")
def server(bundle_of, collector, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")  # milliseconds
        log = tmp_path_factory.mktemp("otlp") / "server.log"
        with serving(bundle_of(VARIANT), log, "--otlp-endpoint", collector.http) as started:
            yield started


def counts(collector, name: str, service: str) -> dict[str, int]:
    """Requests by kind of error, "" for answers."""
    by_error: dict[str, int] = {}
    for one in collector.histograms(name, service):
        kind = str(dict(one.attributes).get("error.type", ""))
        by_error[kind] = by_error.get(kind, 0) + one.count
    return by_error


def ask_through_gateway(address: str) -> None:
    """Two answers, one of them streamed; one request with invalid media; one with an unknown model."""
    url, deadline = f"http://{address}/v1/chat/completions", time.monotonic() + 20
    while httpx2.get(f"http://{address}/health/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for stream in (False, True):
        assert httpx2.post(url, json=BODY | {"stream": stream}, timeout=60).status_code == 200
    broken = BODY | {"messages": [{"role": "user", "content": BROKEN}]}
    assert httpx2.post(url, json=broken, timeout=60).status_code == 400
    assert httpx2.post(url, json=BODY | {"model": "x"}).status_code == 404


def ask_server(server) -> None:
    with server.client() as client:
        client.ask("Who?", image=MEDIA / "image_90x50.png", max_new_tokens=3)
        with pytest.raises(UnreadableMedia):
            client.ask("Who?", video=b"no video")


def test_each_request_counts_once(server, collector):
    with gateway_of("--server", server.grpc, "--otlp-endpoint", collector.http) as address:
        ask_through_gateway(address)
    assert counts(collector, DURATION, GATEWAY) == {"": 2, "UnreadableMedia": 1, "BadRequest": 1}  # its end sent them
    for name in (FIRST, PER_TOKEN):
        assert counts(collector, name, GATEWAY) == {"": 2}
    ask_server(server)  # after the others: what had counted them would be sent with this
    collector.wait(lambda: [1] * sum(counts(collector, DURATION, SERVER).values()), 2)
    assert counts(collector, DURATION, SERVER) == {"": 1, "UnreadableMedia": 1}
    for name in (FIRST, PER_TOKEN):
        assert counts(collector, name, SERVER) == {"": 1}
    models = {dict(one.attributes).get("gen_ai.request.model") for one in collector.series.values()}
    assert models == {"videollama2", None}  # never a caller's text

    with pytest.MonkeyPatch.context() as patch:  # a gateway that sends none leaves them to the server
        patch.setenv("OTEL_METRICS_EXPORTER", "none")
        with gateway_of("--server", server.grpc, "--otlp-endpoint", collector.http) as address:
            ask_through_gateway(address)
    collector.wait(lambda: [1] * sum(counts(collector, DURATION, SERVER).values()), 5)
    assert counts(collector, DURATION, SERVER) == {"": 3, "UnreadableMedia": 2}
    assert sum(counts(collector, DURATION, GATEWAY).values()) == 4
