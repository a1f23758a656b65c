"""The metrics of a real server and gateway match the documentation's table, and count what was requested."""

import base64
import re
import time
import urllib.request

import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from conftest import MEDIA, ROOT
from service.servers import gateway_of
from videollama_core.protocol.errors import UnreadableMedia

VARIANT = "qwen2-clip-8f"
PAGE = ROOT / "docs/observability.md"
ROW = re.compile(r"^\| `(vl2_\w+)` \| (\w+) \|([^|]*)\| (server, gateway|server) \|", re.MULTILINE)


def table(where: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Kind and labels by name, from the documentation."""
    documented = {}
    for name, kind, labels, of in ROW.findall(PAGE.read_text("utf-8")):
        named = set(re.findall(r"`(\w+)`", labels.partition("(")[0]))
        if where in of:
            documented[name] = kind, frozenset(named if "no `model_name`" in labels else named | {"model_name"})
    return documented


def published(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Kind and labels by name, from an exposition; a family without samples has no labels."""
    kinds = dict(re.findall(r"^# TYPE (vl2_\w+) (\w+)$", text, re.MULTILINE))
    families = {}
    for name, kind in kinds.items():
        sample = re.search(rf"^{name}(?:_bucket)?{{(.*)}} ", text, re.MULTILINE)
        labels = re.findall(r'(\w+)="', sample[1]) if sample else ()
        families[name] = kind, frozenset(labels) - {"le"}
    return {name: entry for name, entry in families.items() if not name.endswith("_created")}


def exposition(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def server(server_of):
    """A server that has answered some requests and refused others."""
    server = server_of(VARIANT)
    with server.client() as client:
        client.ask("What happens?", video=MEDIA / "plain_96x64.mp4", max_new_tokens=4)
        with pytest.raises(UnreadableMedia):
            client.ask("What happens?", video=b"no video", max_new_tokens=4)
    server.settled("vl2_rejected_total")
    return server


def test_a_server_publishes_the_documented_metrics(server):
    assert published(exposition(server.metrics)) == table("server")


def test_a_servers_own_failures_are_counted_from_its_start(server):
    text = exposition(server.metrics)
    for kind in ("Overloaded", "StageFailed", "StageRestarting", "StageDied"):
        assert f'vl2_rejected_total{{model_name="videollama2",reason="{kind}"}} ' in text


def test_a_gateway_publishes_the_documented_metrics(server):
    with gateway_of("--server", server.grpc) as address:
        base = f"http://{address}"
        deadline = time.monotonic() + 20
        while httpx2.get(f"{base}/health/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        picture = base64.b64encode((MEDIA / "image_90x50.png").read_bytes()).decode()
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "Who?"}]}]
        body = {"model": "videollama2", "messages": messages, "max_tokens": 3}
        assert httpx2.post(f"{base}/v1/chat/completions", json=body, timeout=60).status_code == 200
        assert httpx2.post(f"{base}/v1/chat/completions", json=body | {"n": 2}).status_code == 400
        assert httpx2.post(f"{base}/v1/chat/completions", json=body | {"model": "x"}).status_code == 404
        assert published(httpx2.get(f"{base}/metrics").text) == table("gateway")


def test_metrics_count_the_requests(server):
    names = {
        "ttft": "vl2_time_to_first_token_seconds",
        "latency": "vl2_e2e_request_latency_seconds",
        "per_token": "vl2_inter_token_latency_seconds",
        "queue": "vl2_request_queue_time_seconds",
        "prefill": "vl2_request_prefill_time_seconds",
        "decode": "vl2_request_decode_time_seconds",
    }

    def counts() -> dict[str, float]:
        server.settled("vl2_generation_tokens_total")
        values = {name: server.metric(f"{metric}_count") for name, metric in names.items()}
        values |= {name: server.metric(f"vl2_{name}_tokens_total") for name in ("prompt", "generation")}
        values |= {name: server.metric(f"vl2_mm_cache_{name}_total") for name in ("queries", "hits")}
        values["preprocess"] = server.metric("vl2_stage_seconds_count", stage="preprocess")
        values["unreadable"] = server.metric("vl2_rejected_total", reason="UnreadableMedia")
        return values

    before = counts()
    sums = [server.metric(f"vl2_{name}_sum") for name in ("e2e_request_latency_seconds", "stage_seconds")]
    video = (MEDIA / "plain_96x64.mp4").read_bytes() + b"new to this server"
    with server.client() as client:
        answers = [client.ask("What happens?", video=video, max_new_tokens=5) for _ in range(2)]
        answers.append(client.ask("Who?", max_new_tokens=5))
        with pytest.raises(UnreadableMedia):
            client.ask("What happens?", image=b"no picture", max_new_tokens=4)
    moved = {name: value - before[name] for name, value in counts().items()}
    usages = [answer.usage for answer in answers]
    assert moved == dict.fromkeys(names, 3) | {
        "prompt": sum(usage.prompt_tokens + usage.media_tokens for usage in usages),
        "generation": sum(usage.completion_tokens for usage in usages),
        "queries": 3,  # the unreadable one is a question about media, too
        "hits": 1,
        "preprocess": 1,
        "unreadable": 1,
    }
    assert server.metric("vl2_e2e_request_latency_seconds_sum") > sums[0]
    assert server.metric("vl2_num_requests_running") == server.metric("vl2_num_requests_waiting") == 0


def test_refusals_of_the_endpoint_are_counted_only_by_it(server):
    def counts() -> tuple[float, float, float]:
        name = "vl2_endpoint_rejected_total"
        values = (server.metric(name, reason=reason) for reason in ("NotAllowed", "InvalidRequest"))
        return *values, server.settled("vl2_rejected_total")

    before = counts()
    with triton.InferenceServerClient(server.grpc) as client:
        for model in ("nowhere", "videollama2"):
            tensor = triton.InferInput("no_such_tensor", [1], "INT32")
            tensor.set_data_from_numpy(np.zeros(1, np.int32))
            with pytest.raises(InferenceServerException):
                client.infer(model, [tensor])
    assert counts() == (before[0] + 1, before[1] + 1, before[2])
