"""gRPC calls as the server makes them to its own Triton, tested against the grpc library's server."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from videollama_server.http2 import channel, frames
from videollama_server.http2.channel import Channel

ECHO, FAIL, WAIT, COUNT = "/test/Echo", "/test/Fail", "/test/Wait", "/test/Count"


class Service(grpc.GenericRpcHandler):
    """Echo returns the request twice; Count sends that many numbers; Wait sends one message and waits until its caller
    disconnects.
    """

    def __init__(self) -> None:
        self.left = threading.Semaphore(0)
        self.metadata: dict[str, str] = {}

    def service(self, details):
        handlers = {ECHO: self.echo, FAIL: self.fail, WAIT: self.wait, COUNT: self.count}
        self.metadata = dict(details.invocation_metadata)
        return grpc.unary_stream_rpc_method_handler(handlers[details.method])

    def echo(self, request, context):
        yield request
        yield request

    def fail(self, request, context):
        yield b"first"
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Overloaded: ein Gr\u00fc\u00dfen 100 %")

    def wait(self, request, context):
        gone = threading.Event()
        context.add_callback(gone.set)
        context.add_callback(self.left.release)  # not below: a call that is gone by then is not asked for more
        yield b"begun"
        gone.wait(30)

    def count(self, request, context):
        for number in range(int(request)):
            yield b"%d" % number


@pytest.fixture(scope="module")
def service():
    return Service()


@pytest.fixture(scope="module", params=["unix", "tcp"])
def target(request, service, tmp_path_factory):
    server = grpc.server(ThreadPoolExecutor(80), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((service,))
    path = f"unix:{tmp_path_factory.mktemp('http2')}/grpc:1"
    port = server.add_insecure_port(path if request.param == "unix" else "127.0.0.1:0")
    server.start()
    yield path if request.param == "unix" else f"127.0.0.1:{port}"
    server.stop(None)


class RecordingListener:
    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.batches: list[int] = []
        self.ended: asyncio.Future = asyncio.get_running_loop().create_future()
        self.begun = asyncio.Event()

    def on_messages(self, messages) -> None:
        assert not self.ended.done()
        self.messages += messages
        self.batches.append(len(messages))
        self.begun.set()

    def on_end(self, status, details) -> None:
        self.ended.set_result((status, details))


def run(target, work):
    async def with_channel():
        opened = Channel(target)
        try:
            async with asyncio.timeout(60):
                return await work(opened)
        finally:
            opened.close()

    return asyncio.run(with_channel())


@pytest.mark.parametrize("size", [0, 1, 16_384, 70_000, 5_000_000])
def test_requests_and_responses_of_any_size(target, size):
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)

    async def work(opened):
        listeners = [RecordingListener() for _ in range(3)]
        calls = [await opened.open(ECHO, message, one) for one in listeners]
        received = [(await one.ended, one.messages) for one in listeners]
        assert all(call.is_sent and call._unsent.obj == b"" for call in calls)  # none keeps its request
        return received

    assert run(target, work) == [((0, ""), [message, message])] * 3


def test_many_calls_at_once_keep_their_order(target):
    async def work(opened):
        listeners = [RecordingListener() for _ in range(64)]
        await asyncio.gather(*(opened.open(COUNT, b"%d" % (50 + place), one) for place, one in enumerate(listeners)))
        await asyncio.gather(*(one.ended for one in listeners))
        return [one.messages for one in listeners]

    assert run(target, work) == [[b"%d" % number for number in range(50 + place)] for place in range(64)]


def test_an_error_follows_the_responses_before_it(target, service):
    async def work(opened):
        listener = RecordingListener()
        await opened.open(FAIL, b"", listener, [("triton_grpc_error", "true"), ("long", "x" * 300)])
        return await listener.ended, listener.messages

    ended, messages = run(target, work)
    assert ended == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "Overloaded: ein Gr\u00fc\u00dfen 100 %")
    assert messages == [b"first"] and service.metadata["triton_grpc_error"] == "true"
    assert service.metadata["long"] == "x" * 300


def test_a_cancelled_call_ends_at_the_server_and_delivers_nothing_more(target, service):
    async def work(opened):
        listener, other = RecordingListener(), RecordingListener()
        call = await opened.open(WAIT, b"", listener)
        await listener.begun.wait()
        call.cancel()
        call.cancel()
        assert await asyncio.to_thread(service.left.acquire, timeout=30)
        await opened.open(ECHO, b"x", other)
        return await other.ended, listener.messages, listener.ended.done()

    assert run(target, work) == ((0, ""), [b"begun"], False)


def test_flow_control_holds_responses_at_the_server(target):
    """At most a window of bytes arrives until more is requested; other calls of the connection go on."""

    async def work(opened):
        listener, other = RecordingListener(), RecordingListener()
        message = bytes(3 * channel.STREAM_WINDOW)
        call = await opened.open(ECHO, message, listener)
        call.hold()
        await opened.open(COUNT, b"5", other)
        await other.ended
        await asyncio.sleep(0.3)
        before = len(listener.messages), listener.ended.done()
        call.go_on()
        await listener.ended
        return before, listener.messages == [message] * 2

    assert run(target, work) == ((0, False), True)


def test_the_end_of_a_connection_ends_its_calls_and_the_next_call_opens_another(target):
    async def work(opened):
        listener, after = RecordingListener(), RecordingListener()
        await opened.open(WAIT, b"", listener)
        await listener.begun.wait()
        opened.close()
        status, _ = await listener.ended
        await opened.open(ECHO, b"x", after)
        return status, await after.ended

    assert run(target, work) == (channel.UNAVAILABLE, (0, ""))


def test_a_call_is_begun_at_once_where_there_is_a_connection(target):
    async def work(opened):
        listeners = [RecordingListener() for _ in range(3)]
        assert not opened.open_at_once(ECHO, b"x", listeners[0])
        await opened.open(ECHO, b"y", listeners[1])
        assert opened.open_at_once(ECHO, b"z", listeners[2])
        ends = [await one.ended for one in listeners[1:]]
        opened.close()
        assert not opened.open_at_once(ECHO, b"x", listeners[0])
        return ends, [one.messages for one in listeners], listeners[0].ended.done()

    assert run(target, work) == ([(0, "")] * 2, [[], [b"y"] * 2, [b"z"] * 2], False)


def test_an_unreachable_server_is_an_error(tmp_path):
    async def work(opened):
        with pytest.raises(OSError):
            await opened.open(ECHO, b"x", RecordingListener())

    run(f"unix:{tmp_path}/nobody", work)


@pytest.mark.parametrize(
    "answer",
    [
        frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, b"\x00\x7f"),
        frames.frame(frames.DATA, frames.PADDED, 1, b""),
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(2**18),
    ],
)
def test_bytes_that_are_not_http2_end_the_calls(answer, tmp_path):
    async def work(opened):
        async def answers(reader, writer):
            await reader.read(1)
            writer.write(answer)
            writer.close()

        async with await asyncio.start_unix_server(answers, f"{tmp_path}/socket"):
            listener = RecordingListener()
            await opened.open(ECHO, b"x", listener)
            return (await listener.ended)[0]

    assert run(f"unix:{tmp_path}/socket", work) in (channel.INTERNAL, channel.UNAVAILABLE)


def test_headers_are_read_in_every_encoding():
    block = b"\x20\x88\x5f\x10application/grpc"  # the size of a table, `:status: 200`, a name of the static table
    block += b"\x40\x0bgrpc-status\x018" + b"\x00\x0cgrpc-message\x05hello" + b"\x00\x01x\x82\xaa\xaa" + b"\xff\x80\x01"
    assert frames.read_headers(block) == {b"grpc-status": b"8", b"grpc-message": b"hello"}
    for length in (3, 10, 30, 40):
        with pytest.raises(frames.BadHeaders):
            frames.read_headers(block[:length])
    with pytest.raises(frames.BadHeaders):
        frames.read_headers(b"\xff" + b"\xff" * 9)


def test_messages_may_be_split_anywhere():
    """A listener receives the same messages, however the frames were split."""
    from videollama_server.http2.call import Call

    wire = b"".join(b"\0" + len(body).to_bytes(4, "big") + body for body in (b"", b"one", b"x" * 300, b"", b"last"))
    for step in (1, 2, 3, 4, 5, 6, 7, 11, 100, len(wire)):
        call = Call(None, 1, None, 0, b"")
        for begin in range(0, len(wire), step):
            call.take(wire[begin : begin + step])
        assert call.messages == [b"", b"one", b"x" * 300, b"", b"last"]
