"""The logs of a real server and gateway: one line per request, by its id, with content only where it is enabled."""

import json
import time

import httpx2
import pytest

from conftest import MEDIA
from service.servers import gateway_of, serving
from videollama_core.protocol.errors import InvalidRequest, UnreadableMedia

VARIANT = "qwen2-clip-8f"
QUESTION, WRONG = "An unmistakable question?", "unmistakable-kind-of-role"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def lines_of(path) -> list[dict]:
    """Lines of the program's own processes; Triton's are in between."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.startswith("{")]


def about(path, request_id: str) -> dict:
    """The one line of a request; it is written a moment after the caller has the answer."""
    deadline = time.monotonic() + 20
    while not (lines := [line for line in lines_of(path) if line.get("request_id") == request_id]):
        assert time.monotonic() < deadline, path.read_text("utf-8")[-2000:]
        time.sleep(0.05)
    assert len(lines) == 1
    return lines[0]


def asked(tmp_path, bundle, *options: object):
    """The logs of server and gateway after one answer, two refusals and one answer through the gateway; both texts."""
    log, gateway_log = tmp_path / "server.log", tmp_path / "gateway.log"
    with serving(bundle, log, "--log-format", "json", *options) as server, server.client() as client:
        text = client.ask(QUESTION, image=MEDIA / "image_90x50.png", max_new_tokens=8, request_id="answered-1").text
        with pytest.raises(UnreadableMedia):
            client.ask(QUESTION, video=b"no video", request_id="refused-1")
        with pytest.raises(InvalidRequest):
            client.ask([{"role": WRONG, "content": "x"}], request_id="refused-2")
        with gateway_log.open("wb") as file:
            with gateway_of("--server", server.grpc, "--log-format", "json", *options, log=file) as address:
                while httpx2.get(f"http://{address}/health/ready").status_code != 200:
                    time.sleep(0.1)
                body = {"model": "videollama2", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
                headers = {"x-request-id": "through-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
                url = f"http://{address}/v1/chat/completions"
                completion = httpx2.post(url, json=body, headers=headers, timeout=60).json()
                assert httpx2.post(url, json=body | {"n": 2}, headers={"x-request-id": "bad-1"}).status_code == 400
        about(log, "through-1")
    return log, gateway_log, text, completion["choices"][0]["message"]["content"]


def test_lines_have_ids_and_no_content(bundle_of, tmp_path):
    log, gateway_log, text, through = asked(tmp_path, bundle_of(VARIANT))
    line = about(log, "answered-1")
    assert (line["process"], line["level"], line["message"], line["media"]) == (
        "videollama2",
        "INFO",
        "answered",
        "image",
    )
    assert line["media_tokens"] > 0 and line["completion_tokens"] > 0 and line["seconds"]["total"] > 0
    line = about(log, "refused-1")
    assert (line["message"], line["reason"]) == ("failed", "UnreadableMedia") and "text" not in line
    for path in (log, gateway_log):
        assert about(path, "through-1")["trace_id"] == TRACE
    line = about(gateway_log, "through-1")
    assert (line["process"], line["status"], line["model"]) == ("gateway", 200, "videollama2")
    line = about(gateway_log, "bad-1")
    assert (line["status"], line["reason"]) == (400, "BadRequest")
    for path in (log, gateway_log):
        written = path.read_text("utf-8")
        for said in (QUESTION, text, through, WRONG):
            assert said and said not in written and json.dumps(said)[1:-1] not in written


def test_content_is_logged_where_it_is_enabled(bundle_of, tmp_path):
    log, gateway_log, text, through = asked(tmp_path, bundle_of(VARIANT), "--log-content")
    line = about(log, "answered-1")
    assert QUESTION in json.dumps(line["question"]) and line["answer"] == text
    assert "video" in about(log, "refused-1")["text"]
    assert about(gateway_log, "through-1")["answer"] == through
    assert "n" in about(gateway_log, "bad-1")["text"]
