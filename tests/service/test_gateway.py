"""The OpenAI API in front of a real server, used by the published openai SDK and by hand-written requests."""

import asyncio
import base64
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import time

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from conftest import MEDIA
from service.servers import gateway_of, vl2
from videollama_benchmarks.overhead.transports import over_grpc, through_gateway
from videollama_gateway.cli import _listen

CLIP, PICTURE = MEDIA / "plain_96x64.mp4", MEDIA / "image_90x50.png"
QUESTION = "What happens?"


@pytest.fixture(scope="module")
def server(server_of):
    return server_of("endless")


@pytest.fixture(scope="module")
def gateway(server):
    with gateway_of("--server", server.grpc) as address:
        deadline = time.monotonic() + 20
        while httpx2.get(f"http://{address}/health/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield address


@pytest.fixture(scope="module")
def sdk(gateway):
    with openai.OpenAI(base_url=f"http://{gateway}/v1", api_key="none", max_retries=0) as client:
        yield client


def data_url(path, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def user(*parts: object, text: str = QUESTION) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


VIDEO = {"type": "video_url", "video_url": {"url": data_url(CLIP, "video/mp4")}}
IMAGE = {"type": "image_url", "image_url": {"url": data_url(PICTURE, "image/png")}}


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ((VIDEO,), {"video": CLIP}),
        (({"type": "video_url", "video_url": {**VIDEO["video_url"], "start": 1}},), {"video": CLIP, "start": 1.0}),
        ((IMAGE,), {"image": PICTURE}),
        ((IMAGE, IMAGE), {"video": [PICTURE, PICTURE]}),
        ((), {}),
    ],
    ids=["video", "segment", "image", "frames", "text"],
)
def test_answers_equal_those_of_grpc(sdk, server, parts, options):
    with server.client() as client:
        expected = client.ask(QUESTION, max_new_tokens=12, temperature=0, **options)
    options = {"model": "videollama2", "messages": user(*parts), "max_tokens": 12, "temperature": 0}
    completion = sdk.chat.completions.create(**options)
    assert completion.choices[0].message.content == expected.text
    assert completion.choices[0].finish_reason == expected.finish_reason
    used = expected.usage
    assert completion.usage.completion_tokens == used.completion_tokens
    assert completion.usage.prompt_tokens == used.prompt_tokens + used.media_tokens
    # Asked before, over gRPC: all but the last position, whose scores are wanted.
    assert completion.usage.prompt_tokens_details.cached_tokens == completion.usage.prompt_tokens - 1
    *chunks, last = sdk.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert (
        chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == expected.finish_reason
    )
    assert not last.choices and last.usage == completion.usage
    assert parts != (VIDEO,) or len(chunks) > 1  # it streams; ids that are there together come together


def test_cached_tokens_are_those_that_were_not_computed(sdk):
    """None for new media; for the next question, in whatever form, those up to where it differs."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(11).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    about = {"type": "image_url", "image_url": {"url": url}}
    options = {"model": "videollama2", "max_tokens": 3}
    first = sdk.chat.completions.create(messages=user(about, text="Where is it?"), **options).usage
    assert first.prompt_tokens_details.cached_tokens == 0
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = sdk.chat.completions.create(messages=user(about, text="Who is it?"), **options, **streamed)
    second = last.usage.prompt_tokens_details.cached_tokens
    assert last.vl2["media_tokens"] < second < last.usage.prompt_tokens - 1
    content = [{"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_text", "text": "Why?"}]
    asked = {"model": "videollama2", "max_output_tokens": 3, "input": [{"role": "user", "content": content}]}
    assert sdk.responses.create(**asked).usage.input_tokens_details.cached_tokens >= second
    ended = [event for event in sdk.responses.create(**asked, stream=True) if hasattr(event, "response")][-1]
    assert ended.response.usage.input_tokens_details.cached_tokens == ended.response.usage.input_tokens - 1


def test_the_responses_api(sdk, server):
    """Whole and streamed, about a picture: the text and the token counts of gRPC."""
    with server.client() as client:
        told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
        expected = client.ask(told, image=PICTURE, max_new_tokens=12, temperature=0)
    content = [{"type": "input_image", "image_url": data_url(PICTURE, "image/png"), "detail": "auto"}]
    content.append({"type": "input_text", "text": QUESTION})
    options = {"model": "videollama2", "instructions": "Be brief.", "max_output_tokens": 12, "temperature": 0}
    options["input"] = [{"role": "user", "content": content}]
    response = sdk.responses.create(**options)
    assert response.output_text == expected.text and response.usage.output_tokens == expected.usage.completion_tokens
    assert response.usage.input_tokens == expected.usage.prompt_tokens + expected.usage.media_tokens
    assert response.usage.input_tokens_details.cached_tokens == response.usage.input_tokens - 1
    assert response.status == {"stop": "completed", "length": "incomplete"}[expected.finish_reason]
    with sdk.responses.stream(**options) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        last = stream.get_final_response() if response.status == "completed" else None
    assert "".join(pieces) == expected.text and (last is None or last.output_text == expected.text)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        sdk.responses.create(**options, previous_response_id="resp_1")


def test_a_system_message_and_earlier_turns(sdk, server):
    messages = [{"role": "system", "content": "Be brief."}, *user(VIDEO)]
    messages += [{"role": "assistant", "content": "A square moves."}, {"role": "user", "content": "And then?"}]
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}, *messages[2:]]
    with server.client() as client:
        expected = client.ask(told, video=CLIP, max_new_tokens=12, temperature=0)
        other = client.ask(told[1:], video=CLIP, max_new_tokens=12, temperature=0)
    completion = sdk.chat.completions.create(model="videollama2", messages=messages, max_tokens=12, temperature=0)
    assert completion.choices[0].message.content == expected.text
    assert completion.usage.prompt_tokens == expected.usage.prompt_tokens + expected.usage.media_tokens
    assert expected.usage.prompt_tokens != other.usage.prompt_tokens


def test_concurrent_streams_equal_those_of_grpc(gateway, server):
    """32 at once, about a video, a picture and nothing in turn: each has the text that gRPC gave to its question alone."""
    kinds = (((VIDEO,), {"video": CLIP}), ((IMAGE,), {"image": PICTURE}), ((), {}))
    asked = [(f"Question number {number}: what happens?", *kinds[number % 3]) for number in range(32)]
    with server.client() as client:
        expected = [client.ask(text, max_new_tokens=10, temperature=0, **media).text for text, _, media in asked]
    assert len(set(expected)) > 3

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://{gateway}/v1", api_key="none", max_retries=0) as client:

            async def ask(text: str, parts: tuple) -> str:
                pieces = []
                options = {"model": "videollama2", "max_tokens": 10, "temperature": 0, "stream": True}
                async for chunk in await client.chat.completions.create(messages=user(*parts, text=text), **options):
                    pieces.append(chunk.choices[0].delta.content or "")
                return "".join(pieces)

            return await asyncio.gather(*(ask(text, parts) for text, parts, _ in asked))

    assert asyncio.run(ask_all()) == expected


def test_the_measured_answers_are_equal_both_ways(gateway, server):
    """benchmarks/measure_gateway.py, without its clock."""
    with server.client() as client, through_gateway(f"http://{gateway}/v1") as by_http:
        for video in (CLIP.read_bytes(), None):
            results = [way(QUESTION, video, 12) for way in (over_grpc(client), by_http)]
            assert results[0].text and results[0].text == results[1].text
            assert all(0 < timed.first <= timed.last for timed in results)


def test_errors_that_a_client_can_fix_are_400_with_the_reason(sdk):
    broken = {
        "type": "video_url",
        "video_url": {"url": "data:video/mp4;base64," + base64.b64encode(b"x" * 999).decode()},
    }
    for messages, more, code in (
        (user(broken), {}, "UnreadableMedia"),
        (user(IMAGE), {"temperature": -1}, "BadSampling"),
        (user(VIDEO), {"extra_body": {"start": 99}}, "BadSegment"),
        (user(text="long " * 40_000), {}, "PromptTooLong"),
        (user(), {"n": 2}, "invalid_request"),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as raised:
                sdk.chat.completions.create(model="videollama2", messages=messages, stream=stream, **more)
            assert raised.value.code == code and raised.value.body["message"]
    with pytest.raises(openai.NotFoundError, match="the models are videollama2"):
        sdk.chat.completions.create(model="gpt", messages=user())
    assert [model.id for model in sdk.models.list()] == ["videollama2"]


def counted(gateway: str, name: str) -> float:
    text = httpx2.get(f"http://{gateway}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? ([\d.e+-]+)$", text, re.MULTILINE))


def test_a_disconnected_client_frees_its_slot(gateway, server):
    """Streaming or not: the gateway has nothing running, and the server answers eight others at once."""
    host, port = gateway.split(":")
    body = {"model": "videollama2", "messages": user(VIDEO), "max_tokens": 1500, "temperature": 0}
    before = counted(gateway, "vl2_rejected_total")
    for stream in (True, False):
        for _ in range(8):
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            connection.request("POST", "/v1/chat/completions", json.dumps(body | {"stream": stream}))
            if stream:
                assert connection.getresponse().read(10)
            else:
                time.sleep(0.05)
            connection.close()
    deadline = time.monotonic() + 20
    while counted(gateway, "vl2_num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert counted(gateway, "vl2_rejected_total") == before + 16
    began = time.monotonic()
    with server.client() as client:
        client.ask("Still there?", max_new_tokens=2)
    assert time.monotonic() - began < 10  # an answer of 1,500 tokens for each of 16 would take longer


def test_http_by_hand(gateway):
    response = httpx2.post(f"http://{gateway}/v1/chat/completions", content=b"{", headers={"x-request-id": "mine-1"})
    assert response.status_code == 400 and "not JSON" in response.json()["error"]["message"]
    assert response.headers["x-request-id"] == "mine-1"
    deep = b"[" * 100_000
    assert httpx2.post(f"http://{gateway}/v1/chat/completions", content=deep).status_code == 400
    wrong_method = httpx2.get(f"http://{gateway}/v1/chat/completions")
    assert wrong_method.status_code == 405 and wrong_method.headers["allow"] == "POST"
    assert "the routes are" in httpx2.get(f"http://{gateway}/v2/logging").json()["error"]["message"]
    assert httpx2.get(f"http://{gateway}/v1/models/videollama2").json()["id"] == "videollama2"
    assert httpx2.get(f"http://{gateway}/v1/models/other").status_code == 404
    assert httpx2.get(f"http://{gateway}/health/live").status_code == 200


def test_a_body_over_the_limit(server):
    with gateway_of("--server", f"mine={server.grpc}", "--max-body-bytes", 1000) as address:
        response = httpx2.post(f"http://{address}/v1/chat/completions", content=b"x" * 1001)
        assert response.status_code == 413 and response.json()["error"]["code"] == "too_large"

        def chunks():
            for _ in range(100):
                yield b"x" * 100

        assert httpx2.post(f"http://{address}/v1/chat/completions", content=chunks()).status_code == 413


def test_a_gateway_without_its_server():
    with gateway_of("--server", "127.0.0.1:1") as address:
        assert httpx2.get(f"http://{address}/health/live").status_code == 200
        assert httpx2.get(f"http://{address}/health/ready").status_code == 503
        with openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as raised:
                client.chat.completions.create(model="videollama2", messages=user())
        assert raised.value.status_code == 503 and raised.value.response.headers["retry-after"]


def test_events_are_sent_at_once():
    """Nagle's algorithm would hold the first text back until the client has acknowledged the headers: 40 ms."""

    async def found() -> int:
        options: asyncio.Queue[int] = asyncio.Queue()

        def accept(reader, writer) -> None:
            options.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = _listen("127.0.0.1", 0)
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            writer.close()
            return await options.get()

    assert asyncio.run(found())


def test_a_busy_port_gives_one_line(gateway):
    port = gateway.split(":")[1]
    done = subprocess.run(vl2("gateway", "--port", port), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and re.fullmatch(
        rf"vl2: InvalidRequest: cannot listen on 127.0.0.1:{port}: .*\n", done.stderr
    )


def test_the_gateway_installs_without_torch():
    heavy = "('torch', 'transformers', 'onnxruntime', 'av', 'PIL', 'tokenizers', 'videollama_server')"
    script = (
        f"import videollama_gateway.app, sys; found = [m for m in {heavy} if m in sys.modules]; assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
