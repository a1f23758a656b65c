"""Where the servers are: named on the command line, listed in a file that is read again, or found by DNS."""

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from videollama_client.connection import check_address
from videollama_core.protocol.errors import InvalidRequest

DEFAULT_MODEL = "videollama2"
FILE_BYTES = 2**20
_DNS = "dns:"
Found = dict[str, tuple[str, ...]]  # model -> addresses of its servers; a model may have none now


class Source(Protocol):
    """Somewhere that tells of servers."""

    async def find(self) -> Found:
        """Raises: InvalidRequest, OSError where nothing is known now; what was known then stays."""
        ...


@dataclass(frozen=True)
class Named:
    """Servers that stay."""

    servers: tuple[tuple[str, str], ...]  # model, address

    async def find(self) -> Found:
        return _by_model(self.servers)


@dataclass(frozen=True)
class ByDns:
    """A server at each address that a name has, such as a headless service of Kubernetes."""

    model: str
    name: str
    port: int

    async def find(self) -> Found:
        """Raises: OSError where the name has no address, or nobody can be asked."""
        rows = await asyncio.get_running_loop().getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM)
        hosts = sorted({str(row[4][0]) for row in rows})
        return {self.model: tuple(f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}" for host in hosts)}


@dataclass(frozen=True)
class Listed:
    """A file with a server a line, as --server takes it; blank lines and what follows a # say nothing."""

    path: Path

    async def find(self) -> Found:
        """Raises: OSError, InvalidRequest for the file as a whole: half a list is none."""
        found: dict[str, list[str]] = {}
        for source in self.read():
            for model, addresses in (await source.find()).items():
                found.setdefault(model, []).extend(addresses)
        return {model: tuple(dict.fromkeys(addresses)) for model, addresses in found.items()}

    def read(self) -> list[Source]:
        """Raises: OSError, InvalidRequest."""
        with self.path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        if len(content) > FILE_BYTES:
            raise InvalidRequest(f"{self.path} has more than {FILE_BYTES} bytes; wanted a server a line")
        sources: list[Source] = []
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if text := line.partition("#")[0].strip():
                try:
                    sources.append(read_server(text))
                except InvalidRequest as error:
                    raise InvalidRequest(f"{self.path}, line {number}: {error}") from error
        return sources


def read_server(text: str) -> Named | ByDns:
    """What [MODEL=]HOST:PORT or [MODEL=]dns:NAME:PORT means. Raises: InvalidRequest."""
    model, separator, address = text.rpartition("=")
    model = model.strip()
    if separator and not model:
        raise InvalidRequest(f"{text}: the name of the model is empty; wanted MODEL=HOST:PORT")
    model, address = model or DEFAULT_MODEL, address.strip()
    if address.startswith(_DNS):
        name, _, port = check_address(address.removeprefix(_DNS)).rpartition(":")
        return ByDns(model, name, int(port))
    return Named(((model, check_address(address)),))


def _by_model(servers: Iterable[tuple[str, str]]) -> Found:
    found: dict[str, dict[str, None]] = {}
    for model, address in servers:
        found.setdefault(model, {})[address] = None
    return {model: tuple(addresses) for model, addresses in found.items()}
