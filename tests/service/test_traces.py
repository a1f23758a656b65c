"""One trace from the gateway to every stage of a real server, as a collector receives it."""

import base64
import itertools
import secrets
import time

import httpx2
import pytest
import tritonclient.grpc as triton

from conftest import MEDIA
from service.servers import gateway_of, serving
from videollama_core.protocol.errors import InvalidRequest, UnreadableMedia

VARIANT = "qwen2-clip-8f"
QUESTION = "Which unmistakable thing happens?"
GENERATION = {"queue", "prefill", "decode"}


@pytest.fixture(scope="module")
def server(bundle_of, collector, tmp_path_factory):
    """Sends its spans over HTTP, set by an option."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds
        log = tmp_path_factory.mktemp("traces") / "server.log"
        with serving(bundle_of(VARIANT), log, "--otlp-endpoint", collector.http) as started:
            yield started


@pytest.fixture(scope="module")
def gateway(server, collector):
    """Sends its spans over gRPC, set by OpenTelemetry's own variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.grpc)
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        with gateway_of("--server", server.grpc) as address:
            deadline = time.monotonic() + 20
            while httpx2.get(f"http://{address}/health/ready").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield f"http://{address}/v1/chat/completions"


def body(video: bytes, **more) -> dict:
    url = f"data:video/mp4;base64,{base64.b64encode(video).decode()}"
    parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {"model": "videollama2", "messages": [{"role": "user", "content": parts}], "max_tokens": 6, **more}


def new_trace(flags: str = "01") -> tuple[str, str]:
    """A trace that the caller has begun, and its `traceparent`."""
    trace = secrets.token_hex(16)
    return trace, f"00-{trace}-{secrets.token_hex(8)}-{flags}"


@pytest.mark.parametrize("stream", [False, True])
def test_one_trace_from_the_callers_header_to_every_stage(gateway, collector, stream):
    trace, parent = new_trace()
    video = (MEDIA / "plain_96x64.mp4").read_bytes() + secrets.token_bytes(8)  # which nobody knows yet
    headers = {"traceparent": parent, "x-request-id": f"traced-{stream}"}
    response = httpx2.post(gateway, json=body(video, stream=stream), headers=headers, timeout=60)
    assert response.status_code == 200
    route, stages = "POST /v1/chat/completions", {"preprocess", "encoder", *GENERATION}
    spans = collector.of(trace, 7)
    assert spans.keys() == {route, "videollama2", *stages}
    assert spans[route].parent == parent.split("-")[2] and spans["videollama2"].parent == spans[route].id
    assert {spans[name].parent for name in stages} == {spans["videollama2"].id}
    assert {name: span.service for name, span in spans.items()} == {
        name: "videollama2-gateway" if name == route else "videollama2-server" for name in spans
    }
    order = [spans[name] for name in ("preprocess", "encoder", "queue", "prefill", "decode")]
    for before, after in itertools.pairwise(order):
        assert before.began <= before.ended <= after.began <= after.ended
    assert spans["queue"].ended == spans["prefill"].began and spans["prefill"].ended == spans["decode"].began
    for inner, outer in ((order[0], spans["videollama2"]), (spans["videollama2"], spans[route])):
        assert outer.began <= inner.began and inner.ended <= outer.ended
    for name in (route, "videollama2"):
        said = spans[name].attributes
        assert said["vl2.request_id"] == f"traced-{stream}" and said["gen_ai.usage.output_tokens"] > 0
        assert not spans[name].failed and said["gen_ai.response.finish_reasons"][0] in ("stop", "length")
    trace, parent = new_trace()  # the same video again: neither stage works for it
    assert httpx2.post(gateway, json=body(video), headers={"traceparent": parent}, timeout=60).status_code == 200
    assert collector.of(trace, 5).keys() == {route, "videollama2", *GENERATION}


def test_the_python_client_forwards_a_trace(server, collector):
    trace, parent = new_trace()
    with server.client() as client:
        answer = client.ask(QUESTION, max_new_tokens=3, traceparent=parent)
        spans = collector.of(trace, 4)
        assert spans.keys() == {"videollama2", *GENERATION}
        assert spans["videollama2"].attributes["gen_ai.usage.output_tokens"] == answer.usage.completion_tokens
        with pytest.raises(InvalidRequest, match="traceparent"):
            client.ask(QUESTION, traceparent="00-1-2-3")


def test_a_refusal_is_a_failed_span(server, collector):
    trace, parent = new_trace()
    with server.client() as client:
        with pytest.raises(UnreadableMedia):
            client.ask(QUESTION, video=b"no video", traceparent=parent)
    span = collector.of(trace, 1)["videollama2"]
    assert span.failed and span.attributes["error.type"] == "UnreadableMedia"


def test_an_unsampled_trace_is_not_exported(server, collector):
    trace, parent = new_trace(flags="00")
    with server.client() as client:
        client.ask(QUESTION, max_new_tokens=2, traceparent=parent)
        later, parent = new_trace()
        client.ask(QUESTION, max_new_tokens=2, traceparent=parent)
    collector.of(later, 4)
    assert not [span for span in collector.spans if span.trace == trace]


@pytest.mark.parametrize("header", ["", "00-" + "0" * 32 + "-1234567890abcdef-01", 'x" y', "00-" + "f" * 1000])
def test_an_invalid_header_begins_a_new_trace(server, collector, header):
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    from videollama_client.wire import build_question

    named = f"bad-{secrets.token_hex(4)}"
    request = build_question(QUESTION, named, {"max_new_tokens": 2})
    assert isinstance(request, service_pb2.ModelInferRequest)
    with triton.InferenceServerClient(server.grpc) as client:
        assert isinstance(client._client_stub, service_pb2_grpc.GRPCInferenceServiceStub)
        call = client._client_stub.ModelStreamInfer(iter([request]), metadata=(("traceparent", header),))
        assert not [message.error_message for message in call if message.error_message]
    asked = collector.wait(
        lambda: [span for span in collector.spans if span.attributes.get("vl2.request_id") == named], 1
    )
    assert len(asked) == 1 and not asked[0].parent


def test_spans_hold_no_content_of_questions_or_answers(server, collector):
    trace, parent = new_trace()
    with server.client() as client:
        text = client.ask(QUESTION, max_new_tokens=12, traceparent=parent).text
    collector.of(trace, 4)
    sent = b"".join(collector.raw)
    assert text and QUESTION.encode() not in sent and text.encode() not in sent
