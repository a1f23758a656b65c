"""Access control at the network endpoint: TLS, API keys, and the options of `vl2 serve` for both."""

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
    """Who may call the server.

    Args:
        tls_cert, tls_key: PEM files of the server's certificate and its private key.
        tls_client_ca: PEM file of the authorities that sign client certificates; None requires no client certificate.
        api_keys: file of API keys (api_keys.py); None admits everyone.
        key_concurrent, key_per_minute: default limits of a key; 0 means unlimited.
        isolate_media: decode every request's media in its own process, even those of the same key.
    Raises: InvalidRequest if options are missing or contradict each other, or the keys cannot be read.
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
            raise InvalidRequest("--tls-cert and --tls-key need each other; name both, or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidRequest("--tls-client-ca needs --tls-cert and --tls-key; name them, too")
        if self.api_keys is not None:
            read_keys(Path(self.api_keys))
        elif self.key_concurrent or self.key_per_minute:
            raise InvalidRequest("--key-concurrent and --key-per-minute need --api-keys; name a file of keys")

    def warnings(self, host: str) -> list[str]:
        """Return warnings about insecure settings for a server that listens on `host`."""
        warnings = []
        if self.api_keys is None and self.tls_client_ca is None and not _is_loopback(host):
            warnings.append(
                f"everyone who can reach {host} may send requests; set --api-keys or --tls-client-ca, or listen on 127.0.0.1"
            )
        elif self.tls_cert is None and not _is_loopback(host):
            warnings.append(
                "API keys are sent unencrypted, and can be read on the network; set --tls-cert and --tls-key"
            )
        if self.api_keys is not None and Path(self.api_keys).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            warnings.append(f"{self.api_keys} can be read by other users of this machine; chmod 600 it")
        return warnings


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_OPTIONS = (
    click.option("--tls-cert", type=_FILE, help="Encrypt gRPC with the server certificate in this PEM file."),
    click.option("--tls-key", type=_FILE, help="Use the private key in this PEM file with --tls-cert."),
    click.option(
        "--tls-client-ca", type=_FILE, help="Require client certificates signed by the authorities in this PEM file."
    ),
    click.option(
        "--api-keys",
        type=_FILE,
        help="Require an API key from this file, one per line: KEY [NAME] [concurrent=N] [per_minute=N]. It is reread when it changes.",
    ),
    click.option(
        "--key-concurrent",
        type=click.IntRange(0),
        default=0,
        help="Limit the concurrent requests of each key; 0 means unlimited.",
    ),
    click.option(
        "--key-per-minute",
        type=click.IntRange(0),
        default=0,
        help="Limit the requests per minute of each key; 0 means unlimited.",
    ),
    click.option(
        "--isolate-media",
        is_flag=True,
        help="Decode the media of every request in its own process, even for the same API key; costs about 10 ms per request.",
    ),
)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the access options to a command, which passes them to `access_of_options`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def access_of_options(options: dict[str, Any]) -> Access:
    """Pop the access options from those of `vl2 serve`. Raises: InvalidRequest."""
    values: dict[str, Any] = {}
    for name in Access.__dataclass_fields__:
        value = options.pop(name)
        values[name] = str(value.absolute()) if isinstance(value, Path) else value
    return Access(**values)
