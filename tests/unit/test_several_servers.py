"""Servers that come and go behind the gateway, and what becomes of a request whose server is lost; servers of our own."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from starlette.requests import Request
from tritonclient.grpc import service_pb2, service_pb2_grpc

from videollama_core.protocol.errors import InvalidRequest, ServerUnreachable
from videollama_gateway.answering import Answering
from videollama_gateway.api.chat_request import ChatRequest
from videollama_gateway.discovery import ByDns, Listed, Named, read_server
from videollama_gateway.request_telemetry import RequestTelemetry, Telemetry
from videollama_gateway.servers import POLL_SECONDS, Servers
from wire_messages import message

SUMMARY = {
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 1, "media_tokens": 0, "completion_tokens": 1},
    "seconds": {},
}


class Entry(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Ready; answers with its name, or ends the call before or after its first text."""

    def __init__(self, name: str) -> None:
        self.name, self.ends, self.num_questions = name, "", 0

    def ModelReady(self, request, context) -> service_pb2.ModelReadyResponse:
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelStreamInfer(self, requests, context) -> Iterator[service_pb2.ModelStreamInferResponse]:
        next(requests)
        self.num_questions += 1
        yield message(process=f"{self.name}:1")
        if self.ends == "before":
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield message(text=self.name, output_ids=[1])
        if self.ends == "after":
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield message(text="", summary=json.dumps(SUMMARY))


@contextmanager
def running(*entries: Entry) -> Iterator[list[str]]:
    servers, addresses = [], []
    for entry in entries:
        server = grpc.server(ThreadPoolExecutor(8))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(entry, server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        servers.append(server)
    try:
        yield addresses
    finally:
        for server in servers:
            server.stop(None).wait()


async def ask(servers: Servers, digest: str | None = None) -> str:
    asked = Request({"type": "http", "method": "POST", "path": "/ask", "headers": [], "query_string": b""})
    telemetry = RequestTelemetry(Telemetry(), asked, "1")
    telemetry.begin("m")
    chat = ChatRequest("videollama2", [{"role": "user", "content": "?"}], {}, digest)
    answering = Answering(servers, chat, "1", telemetry)
    try:
        await answering.begin()
        return (answering.first or "") + "".join([piece async for piece in answering.rest()])
    finally:
        await answering.leave()


def test_a_request_moves_to_another_server_only_before_its_first_text():
    first, second = Entry("first"), Entry("second")

    async def run(addresses: list[str]) -> None:
        servers = Servers.connect(addresses, {})
        await servers.start()
        digest = next(
            digest
            for digest in map(str, range(99))
            if servers.in_order("videollama2", digest)[0].address == addresses[0]
        )
        assert await ask(servers, digest) == "first"
        first.ends = "before"
        assert await ask(servers, digest) == "second" and (first.num_questions, second.num_questions) == (2, 1)
        first.ends = "after"
        await servers.models["videollama2"][0].poll()
        with pytest.raises(ServerUnreachable):
            await ask(servers, digest)
        assert (first.num_questions, second.num_questions) == (3, 1)
        await servers.close()

    with running(first, second) as addresses:
        asyncio.run(run(addresses))


def test_the_gateway_waits_for_a_restarting_server():
    """The only server loses a request, and answers it when it is ready again."""
    entry = Entry("only")
    entry.ends = "before"

    async def run(addresses: list[str]) -> None:
        servers = Servers.connect(addresses, {})
        await servers.start()
        asking = asyncio.create_task(ask(servers))
        while not entry.num_questions:
            await asyncio.sleep(0.01)
        entry.ends = ""
        assert await asking == "only"
        await servers.close()

    with running(entry) as addresses:
        asyncio.run(run(addresses))


def test_servers_listed_in_a_file_come_and_go(tmp_path):
    """A removed server keeps its connection until its last question is answered."""
    file = tmp_path / "servers"

    async def until(holds) -> None:
        async with asyncio.timeout(20 * POLL_SECONDS):
            while not holds():
                await asyncio.sleep(0.02)

    async def run(one: str, two: str) -> None:
        file.write_text(f"# ours\n{one}\n\nother = {two}  # beside it\n")
        servers = Servers.connect((), {}, file)
        await servers.start()
        assert servers.is_ready and set(servers.models) == {"videollama2", "other"}
        (before,) = servers.models["videollama2"]
        before.running = 1
        file.write_text(f"{two}\n{two}\n")
        await until(lambda: [server.address for server in servers.models["videollama2"]] == [two])
        await until(lambda: servers.is_ready)
        assert set(servers.models) == {"videollama2"} and await ask(servers) == "two"
        assert await before.client.health()  # not closed
        before.running = 0
        file.write_text("nonsense\n")
        with pytest.raises(InvalidRequest, match="line 1"):
            await Listed(file).find()
        file.write_text("")  # as one that is being written anew
        with pytest.raises(InvalidRequest, match="about to be written"):
            await Listed(file).find()
        file.write_text("nonsense\n")

        async def is_closed() -> bool:
            with pytest.raises(InvalidRequest, match="closed"):
                await before.client.ask("?")
            return True

        await asyncio.sleep(2.5 * POLL_SECONDS)
        assert await is_closed() and await ask(servers) == "two"  # a list that means nothing changes nothing
        file.unlink()
        await servers.discover()
        assert await ask(servers) == "two"
        file.write_text("")
        await until(lambda: not servers.models)
        assert not servers.is_ready
        await servers.close()

    with running(Entry("one"), Entry("two")) as addresses:
        asyncio.run(run(*addresses))


def test_servers_found_by_dns_name(monkeypatch):
    """The addresses that a name resolves to; a name that does not resolve now keeps the previous ones."""

    async def run(address: str) -> None:
        port = address.rpartition(":")[2]
        servers = Servers.connect([f"mine=dns:localhost:{port}"], {})
        await servers.start()
        assert address in [server.address for server in servers.models["mine"]] and servers.is_ready

        async def fail(*_: object, **more: object) -> None:
            raise OSError("no such name")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
        await servers.discover()
        assert servers.is_ready
        await servers.close()
        unknown = Servers.connect(["dns:nowhere.invalid:1"], {})
        await unknown.discover()
        assert unknown.models == {"videollama2": []} and not unknown.is_ready
        with pytest.raises(ServerUnreachable):
            unknown.in_order("videollama2", None)

    with running(Entry("one")) as (address,):
        asyncio.run(run(address))


def test_the_forms_of_a_server_name(tmp_path):
    assert read_server("m = h:1") == Named((("m", "h:1"),)) and read_server("h:1") == Named((("videollama2", "h:1"),))
    assert read_server("a=b=dns:name:8001") == ByDns("a=b", "name", 8001)
    for wrong in ("h", "=h:1", "dns:h", "dns::1", "m=dns:x", "h:99999", "a b:1"):
        with pytest.raises(InvalidRequest):
            read_server(wrong)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Servers.connect((), {}, tmp_path / "none")
    with pytest.raises(InvalidRequest, match="certificates name hosts"):
        Servers.connect(["dns:h:1"], {"tls": True})
