"""The servers behind the gateway: which of them has a model, which is ready, which takes the next question."""

import asyncio
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videollama_client import AsyncClient
from videollama_core.protocol.errors import InvalidRequest, ServerUnreachable
from videollama_gateway.discovery import ByDns, Found, Listed, Source, read_server
from videollama_gateway.failures import BadRequest

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0
# Consistent hashing with bounded load: a server takes at most so many times its share of the running questions. What a
# server's batch takes at once is no load: among few questions, shares say nothing.
SPARE, NO_LOAD = 1.25, 8


@dataclass(eq=False)
class Server:
    """One server: its client, whether it was ready when it was last asked, and how many questions it has."""

    address: str
    client: AsyncClient
    ready: bool = False
    running: int = 0
    wanted: bool = True  # False: it takes no new question, and is left when the last has its answer

    async def look(self) -> None:
        """Ask whether it answers, now."""
        self.ready = await self.client.health()


@dataclass
class Servers:
    """Models by name, each on one server or several, which may come and go.

    A question about media goes to the server that had the media before (rendezvous hashing on its digest), so that its
    tokens are found there; unless that one has more than its share of the work.
    """

    models: dict[str, list[Server]] = field(default_factory=dict)
    sources: Sequence[Source] = ()
    connection: Mapping[str, Any] = field(default_factory=dict)
    _found: dict[Source, Found] = field(default_factory=dict)
    _failures: dict[Source, str] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def connect(cls, named: Sequence[str], connection: Mapping[str, Any], file: Path | None = None) -> "Servers":
        """Nothing is asked before `start`.

        Args:
            named: [MODEL=]HOST:PORT or [MODEL=]dns:NAME:PORT, several of one model likewise.
            connection: further keyword arguments of AsyncClient.
            file: a list of more of them, read again every second.
        Raises: InvalidRequest where they mean nothing.
        """
        sources: list[Source] = [read_server(text) for text in named]
        inner = list(sources)
        if file is not None:
            listed = Listed(file)
            sources.append(listed)
            try:
                inner += listed.read()
            except OSError as error:
                raise InvalidRequest(f"--servers-file {file} cannot be read: {error.strerror}") from error
        encrypted = any(connection.get(name) for name in ("tls", "root_certificates", "certificate"))
        if encrypted and any(isinstance(source, ByDns) for source in inner):
            raise InvalidRequest("dns: gives addresses, and certificates name hosts; name the hosts, or leave TLS out")
        return cls({}, sources, connection)

    def in_order(self, model: str, media_digest: str | None) -> list[Server]:
        """The ready servers of a model, the one to ask first. Raises: BadRequest (404), ServerUnreachable."""
        if model not in self.models:
            raise BadRequest(
                f"the model {model!r} does not exist; there are {', '.join(self.models)}",
                "model",
                404,
                "model_not_found",
            )
        ready = [server for server in self.models[model] if server.ready]
        if not ready:
            raise ServerUnreachable(f"no server of the model {model} is ready")
        if media_digest is None:
            return sorted(ready, key=lambda server: server.running)
        most = max(NO_LOAD, math.ceil(SPARE * (sum(server.running for server in ready) + 1) / len(ready)))
        ranked = sorted(ready, key=lambda server: hashlib.sha256(f"{media_digest} {server.address}".encode()).digest())
        return sorted(ranked, key=lambda server: server.running >= most)  # a stable sort: those with room first

    @property
    def is_ready(self) -> bool:
        """Whether there is a model, and each has a server that answers."""
        return bool(self.models) and all(any(server.ready for server in each) for each in self.models.values())

    # --- who is there ---

    async def start(self) -> None:
        """Find the servers, ask each whether it answers, and go on doing both until `close`."""
        await self.discover()
        await asyncio.gather(*(server.look() for servers in self.models.values() for server in servers))
        self._begin(self._keep_discovering())

    async def discover(self) -> None:
        """Take in new servers and let go of those that are gone. A source that fails keeps what it had."""
        for source in self.sources:
            try:
                self._found[source] = await source.find()
                self._failures.pop(source, None)
            except (InvalidRequest, OSError) as error:
                if isinstance(source, ByDns):
                    self._found.setdefault(source, {source.model: ()})
                if self._failures.get(source) != str(error):  # once, not every second
                    logger.warning("%s tells of no servers now, those of before stay: %s", source, error)
                self._failures[source] = str(error)
        wanted: dict[str, dict[str, None]] = {}
        for found in self._found.values():
            for model, addresses in found.items():
                wanted.setdefault(model, {}).update(dict.fromkeys(addresses))
        self._take({model: list(addresses) for model, addresses in wanted.items()})

    def _take(self, wanted: Mapping[str, Sequence[str]]) -> None:
        models: dict[str, list[Server]] = {}
        for model, addresses in wanted.items():
            known = {server.address: server for server in self.models.get(model, ())}
            models[model] = [known.get(address) or self._meet(address) for address in addresses]
        kept = {server for servers in models.values() for server in servers}
        for servers in self.models.values():
            for server in servers:
                server.wanted = server in kept
        self.models = models

    def _meet(self, address: str) -> Server:
        server = Server(
            address, AsyncClient(address, restart_seconds=0, **self.connection)
        )  # another server may have it
        self._begin(self._watch(server))
        return server

    async def _watch(self, server: Server) -> None:
        """One task a server, so that one that does not answer holds up no other."""
        try:
            while server.wanted or server.running:
                await server.look()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await server.client.close()

    async def _keep_discovering(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.discover()

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
