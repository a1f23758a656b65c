"""The servers behind the gateway: their models, their readiness, and which one gets the next question."""

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
from videollama_gateway.discovery import Addresses, ByDns, Listed, Source, read_server
from videollama_gateway.failures import BadRequest

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0
# The bound on the load of a server: this multiple of its share of the running questions, or, if that is less, as many as
# fit into one batch. Among few questions, shares mean nothing.
LOAD_FACTOR = 1.25
ALWAYS_ALLOWED = 8


@dataclass(eq=False)
class Server:
    """One server: its client, its readiness at the last poll, and the number of its running questions."""

    address: str
    client: AsyncClient
    ready: bool = False
    running: int = 0
    wanted: bool = True  # False: it gets no new questions and is dropped after its last answer

    async def poll(self) -> None:
        """Update its readiness."""
        self.ready = await self.client.health()


@dataclass
class Servers:
    """Models by name, each on one or more servers, which may come and go.

    A question about media goes to the server that had the media before (rendezvous hashing on its digest), whose cache
    holds the media tokens, unless that server has more than its share of the load.
    """

    models: dict[str, list[Server]] = field(default_factory=dict)
    sources: Sequence[Source] = ()
    connection: Mapping[str, Any] = field(default_factory=dict)
    _addresses: dict[Source, Addresses] = field(default_factory=dict)
    _failures: dict[Source, str] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def connect(cls, named: Sequence[str], connection: Mapping[str, Any], file: Path | None = None) -> "Servers":
        """Build from the command line, without contacting any server before `start`.

        Args:
            named: [MODEL=]HOST:PORT or [MODEL=]dns:NAME:PORT; a model may occur several times.
            connection: further keyword arguments of AsyncClient.
            file: a list of further servers, reread every second.
        Raises: InvalidRequest for invalid addresses or an unreadable file.
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
            raise InvalidRequest(
                "dns: resolves to addresses, but certificates name hosts; name each host with --server, or leave TLS out"
            )
        return cls({}, sources, connection)

    def check_model(self, model: str) -> None:
        """Raises: BadRequest (404) for a model without a server."""
        if model not in self.models:
            text = f"the model {model!r} does not exist; the models are {', '.join(self.models)}"
            raise BadRequest(text, "model", 404, "model_not_found")

    def in_order(self, model: str, media_digest: str | None) -> list[Server]:
        """Return the ready servers of a model, the preferred one first. Raises: BadRequest (404), ServerUnreachable."""
        self.check_model(model)
        ready = [server for server in self.models[model] if server.ready]
        if not ready:
            raise ServerUnreachable(f"no server of the model {model} is ready")
        if media_digest is None:
            return sorted(ready, key=lambda server: server.running)
        most = max(ALWAYS_ALLOWED, math.ceil(LOAD_FACTOR * (sum(server.running for server in ready) + 1) / len(ready)))
        ranked = sorted(ready, key=lambda server: hashlib.sha256(f"{media_digest} {server.address}".encode()).digest())
        return sorted(ranked, key=lambda server: server.running >= most)  # stable sort: servers below their bound first

    @property
    def is_ready(self) -> bool:
        """Whether there is at least one model, and every model has a ready server."""
        return bool(self.models) and all(any(server.ready for server in each) for each in self.models.values())

    async def start(self) -> None:
        """Discover the servers, poll each once, and keep doing both in the background until `close`."""
        await self.discover()
        await asyncio.gather(*(server.poll() for servers in self.models.values() for server in servers))
        self._begin(self._keep_discovering())

    async def discover(self) -> None:
        """Add new servers and retire those that are gone. A source that fails keeps its previous servers."""
        for source in self.sources:
            try:
                self._addresses[source] = await source.find()
                self._failures.pop(source, None)
            except (InvalidRequest, OSError) as error:
                if isinstance(source, ByDns):
                    self._addresses.setdefault(source, {source.model: ()})
                if self._failures.get(source) != str(error):  # once, not every second
                    logger.warning("discovery failed, keeping the previous servers of %s: %s", source, error)
                self._failures[source] = str(error)
        wanted: dict[str, dict[str, None]] = {}
        for models in self._addresses.values():
            for model, addresses in models.items():
                wanted.setdefault(model, {}).update(dict.fromkeys(addresses))
        self._update({model: list(addresses) for model, addresses in wanted.items()})

    def _update(self, wanted: Mapping[str, Sequence[str]]) -> None:
        models: dict[str, list[Server]] = {}
        for model, addresses in wanted.items():
            known = {server.address: server for server in self.models.get(model, ())}
            models[model] = [known.get(address) or self._add(address) for address in addresses]
        kept = {server for servers in models.values() for server in servers}
        for servers in self.models.values():
            for server in servers:
                server.wanted = server in kept
        self.models = models

    def _add(self, address: str) -> Server:
        # No resending by the client: the gateway sends the request to another server instead.
        server = Server(address, AsyncClient(address, restart_seconds=0, **self.connection))
        self._begin(self._watch(server))
        return server

    async def _watch(self, server: Server) -> None:
        """Poll in a task per server, so that an unresponsive one does not delay the others."""
        try:
            while server.wanted or server.running:
                await server.poll()
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
        """Stop polling and close the clients."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
