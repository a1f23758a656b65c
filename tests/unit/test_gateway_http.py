"""The gateway's HTTP protocol: what one request may hold beside its body is limited, wherever it stands."""

import asyncio

import pytest
import uvicorn

from videollama_gateway.http import HEAD_BYTES, LimitedHttp

SECONDS = 30


async def _length_of_body(scope, receive, send):
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def answer_to(*parts: bytes) -> tuple[bytes, int]:
    """Send the parts until the server closes the connection. Returns: its answer, bytes sent."""

    async def talk() -> tuple[bytes, int]:
        config = uvicorn.Config(
            _length_of_body, http=LimitedHttp, log_config=None, lifespan="off", host="127.0.0.1", port=0
        )
        server = uvicorn.Server(config)
        config.load()
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.001)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        sent, answer = 0, b""
        try:
            for part in parts:
                writer.write(part)
                sent += len(part)
                await writer.drain()
                await asyncio.sleep(0)
            while data := await reader.read(65536):
                answer += data
        except ConnectionError:
            pass
        writer.close()
        server.should_exit = True
        await serving
        return answer, sent

    return asyncio.run(asyncio.wait_for(talk(), SECONDS))


def test_a_head_below_the_limit_is_accepted():
    answer, _ = answer_to(b"GET / HTTP/1.1\r\nConnection: close\r\nX: " + b"y" * (HEAD_BYTES - 100) + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"y" * HEAD_BYTES,
        b"GET / HTTP/1.1" + b"\r\nX: y" * HEAD_BYTES,
        b"GET /" + b"y" * HEAD_BYTES + b" HTTP/1.1",
    ],
    ids=["one header", "many headers", "the URL"],
)
def test_a_whole_head_above_the_limit_is_refused(head):
    assert answer_to(head + b"\r\n\r\n")[0].startswith(b"HTTP/1.1 400")


ENDLESS = {
    "a header": b"GET / HTTP/1.1\r\nX: ",
    "the URL": b"GET /",
    "trailers": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: ",
    "the extension of a chunk": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=",
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_never_ends_is_refused_soon(what):
    answer, sent = answer_to(ENDLESS[what], *[b"y" * 2**14] * 1000)
    assert not answer or answer.startswith(b"HTTP/1.1 400")  # b"": the connection was reset while it sent
    assert sent < 2**23  # the socket's buffers hold what was sent after the refusal


def test_a_body_of_small_chunks_is_read():
    head = b"POST / HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer, _ = answer_to(head + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"100000")


def test_requests_sent_together_are_answered_in_turn():
    first = b"POST / HTTP/1.1\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000)
    last = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    answer, _ = answer_to(first * 3 + last)
    assert answer.count(b"HTTP/1.1 200") == 4 and answer.count(b"200000") == 3 and answer.endswith(b"3")
