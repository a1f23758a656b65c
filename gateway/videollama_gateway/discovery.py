"""Server discovery: addresses named on the command line, listed in a file that is reread, or resolved by DNS."""

import asyncio
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from videollama_client.connection import check_address
from videollama_core.protocol.errors import InvalidRequest

DEFAULT_MODEL = "videollama2"
FILE_BYTES = 2**20
NEW_SECONDS = 0.5  # an empty file that is not older may be about to be written
_DNS = "dns:"
Addresses = dict[str, tuple[str, ...]]  # model -> addresses of its servers, which may be none at the moment


class Source(Protocol):
    """A source of server addresses."""

    async def find(self) -> Addresses:
        """Return the current servers. Raises: InvalidRequest or OSError; the previous ones then stay in use."""
        ...


@dataclass(frozen=True)
class Named:
    """A fixed list of servers."""

    servers: tuple[tuple[str, str], ...]  # model, address

    async def find(self) -> Addresses:
        return _by_model(self.servers)


@dataclass(frozen=True)
class ByDns:
    """One server at each address of a DNS name, such as a headless Kubernetes service."""

    model: str
    name: str
    port: int

    async def find(self) -> Addresses:
        """Raises: OSError if the name has no address, or the lookup fails."""
        rows = await asyncio.get_running_loop().getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM)
        hosts = sorted({str(row[4][0]) for row in rows})
        return {self.model: tuple(f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}" for host in hosts)}


@dataclass(frozen=True)
class Listed:
    """A file with one server per line, in the format of --server; blank lines and comments after # are ignored."""

    path: Path

    async def find(self) -> Addresses:
        """Raises: OSError or InvalidRequest if any part of the file fails, or it has only just become empty.

        A partial list is not used, and a file that is written anew in its place is empty for a moment.
        """
        models: dict[str, list[str]] = {}
        for source in self.read():
            for model, addresses in (await source.find()).items():
                models.setdefault(model, []).extend(addresses)
        if not models and time.time() - self.path.stat().st_mtime < NEW_SECONDS:
            raise InvalidRequest(f"{self.path} lists no server; it may be about to be written")
        return {model: tuple(dict.fromkeys(addresses)) for model, addresses in models.items()}

    def read(self) -> list[Source]:
        """Parse the file. Raises: OSError, InvalidRequest."""
        with self.path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise InvalidRequest(f"{self.path} has more than {FILE_BYTES} bytes; wanted one server per line")
        sources: list[Source] = []
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if text := line.partition("#")[0].strip():
                try:
                    sources.append(read_server(text))
                except InvalidRequest as error:
                    raise InvalidRequest(f"{self.path}, line {number}: {error}") from error
        return sources


def read_server(text: str) -> Named | ByDns:
    """Parse [MODEL=]HOST:PORT or [MODEL=]dns:NAME:PORT. Raises: InvalidRequest."""
    model, separator, address = text.rpartition("=")
    model = model.strip()
    if separator and not model:
        raise InvalidRequest(f"{text}: the model name is empty; wanted MODEL=HOST:PORT")
    model, address = model or DEFAULT_MODEL, address.strip()
    if address.startswith(_DNS):
        name, _, port = check_address(address.removeprefix(_DNS)).rpartition(":")
        return ByDns(model, name, int(port))
    return Named(((model, check_address(address)),))


def _by_model(servers: Iterable[tuple[str, str]]) -> Addresses:
    models: dict[str, dict[str, None]] = {}
    for model, address in servers:
        models.setdefault(model, {})[address] = None
    return {model: tuple(addresses) for model, addresses in models.items()}
