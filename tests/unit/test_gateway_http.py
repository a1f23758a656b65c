"""The gateway's HTTP protocol: its limit of what a request holds beside its body, and what httptools alone does not do."""

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


def answer_to(*parts: bytes, app=_length_of_body, leave: bool = False) -> tuple[bytes, int]:
    """Send the parts, and `leave` or read until the server closes the connection. Returns: its answer, bytes sent."""

    async def talk() -> tuple[bytes, int]:
        config = uvicorn.Config(app, http=LimitedHttp, log_config=None, lifespan="off", host="127.0.0.1", port=0)
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
                await asyncio.sleep(0.01 if leave else 0)
            while not leave and (data := await reader.read(65536)):
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


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("parts", [(b"abc",), (b"a", b"bc")], ids=["at once", "in parts"])
def test_a_request_to_upgrade_keeps_its_body(parts):
    """Java's client asks for HTTP/2 like this with each first request of a connection."""
    first, *others = parts
    last = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 4\r\n\r\nabcd"
    head = b"POST / HTTP/1.1\r\n" + UPGRADE + b"Content-Length: 3\r\n\r\n"
    answer, _ = answer_to(head + first, *others, last)
    assert answer.count(b"HTTP/1.1 200") == 2 and b"\r\n\r\n3HTTP" in answer and answer.endswith(b"\r\n\r\n4")


def test_a_request_to_connect_is_refused():
    assert answer_to(b"CONNECT x:1 HTTP/1.1\r\n\r\n")[0].startswith(b"HTTP/1.1 400")


async def _two_pieces(scope, receive, send):
    headers = [] if scope["path"] == "/unknown" else [(b"content-length", b"6")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await send({"type": "http.response.body", "body": b"two"})


@pytest.mark.parametrize("path", [b"/known", b"/unknown"])
def test_http_1_0_gets_no_chunks(path):
    answer, _ = answer_to(b"GET " + path + b" HTTP/1.0\r\n\r\n", app=_two_pieces)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"onetwo" and b"transfer-encoding" not in head


def test_a_request_before_others_learns_of_the_disconnect():
    learned = []

    async def wait_for_disconnect(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        learned.append(scope["path"])

    answer_to(b"GET /first HTTP/1.1\r\n\r\nGET /second HTTP/1.1\r\n\r\n", app=wait_for_disconnect, leave=True)
    assert learned == ["/first"]
