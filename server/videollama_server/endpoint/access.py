"""Who gets in from the network: TLS, API keys, and how `vl2 serve` takes both."""

import ipaddress
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from videollama_core.protocol.errors import InvalidRequest
from videollama_server.endpoint.api_keys import read_keys

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@dataclass(frozen=True)
class Access:
    """
    Args:
        tls_cert, tls_key: PEM files of the server's certificate and its key.
        tls_client_ca: PEM file of the authorities that sign callers' certificates; None asks callers for none.
        api_keys: file of keys (api_keys.py); None lets everybody ask.
        key_concurrent, key_per_minute: limits of a key whose line names none; 0 is none.
        isolate_media: no two requests are decoded in one process, not even of one key, or of callers without any.
    Raises: InvalidRequest where they do not belong together, or the keys cannot be read.
    """

    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    api_keys: str | None = None
    key_concurrent: int = 0
    key_per_minute: int = 0
    isolate_media: bool = False

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidRequest("--tls-cert and --tls-key come together; name both, or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidRequest("--tls-client-ca came without --tls-cert and --tls-key; name them, too")
        if self.api_keys is not None:
            read_keys(Path(self.api_keys))
        elif self.key_concurrent or self.key_per_minute:
            raise InvalidRequest("--key-concurrent and --key-per-minute are limits of --api-keys; name a file of keys")

    def warnings(self, host: str) -> list[str]:
        """What an operator should know before the network does."""
        found = []
        if self.api_keys is None and self.tls_client_ca is None and not _is_loopback(host):
            found.append(
                f"everybody who reaches {host} may ask; name --api-keys, or --tls-client-ca, or listen on 127.0.0.1"
            )
        elif self.tls_cert is None and not _is_loopback(host):
            found.append(
                "API keys travel in the clear without --tls-cert and --tls-key: everybody on the way reads them"
            )
        if self.api_keys is not None and Path(self.api_keys).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            found.append(f"{self.api_keys} can be read by others of this machine; chmod 600 it")
        return found


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_OPTIONS = (
    click.option("--tls-cert", type=_FILE, help="PEM file of the server's certificate: gRPC is encrypted."),
    click.option("--tls-key", type=_FILE, help="PEM file of the certificate's key."),
    click.option("--tls-client-ca", type=_FILE, help="PEM file of authorities; callers need a certificate of theirs."),
    click.option(
        "--api-keys",
        type=_FILE,
        help="File of API keys, one a line: KEY [NAME] [concurrent=N] [per_minute=N]. Read again when it changes.",
    ),
    click.option("--key-concurrent", type=click.IntRange(0), default=0, help="Requests at a time of one key; 0: any."),
    click.option("--key-per-minute", type=click.IntRange(0), default=0, help="Requests a minute of one key; 0: any."),
    click.option(
        "--isolate-media",
        is_flag=True,
        help="Decode each request's media in a process of its own, also those of one API key. About 10 ms a request.",
    ),
)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with these options; pass them on to `access_of_options`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def access_of_options(options: dict[str, Any]) -> Access:
    """Takes its own out of the options of `vl2 serve`. Raises: InvalidRequest."""
    found: dict[str, Any] = {}
    for name in Access.__dataclass_fields__:
        value = options.pop(name)
        found[name] = str(value.absolute()) if isinstance(value, Path) else value
    return Access(**found)
