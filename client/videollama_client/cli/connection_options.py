"""The connection options on the command line, shared by every command that talks to a server."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from videollama_client.connection import DEFAULT_ADDRESS
from videollama_core.protocol.errors import InvalidRequest

API_KEY_VARIABLE = "VL2_API_KEY"
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OPTIONS = (
    click.option(
        "--url",
        default=DEFAULT_ADDRESS,
        show_default=True,
        help="Connect to the server at this gRPC address, host:port.",
    ),
    click.option("--tls", is_flag=True, help="Encrypt, and verify the server's certificate; --ca and --cert imply it."),
    click.option(
        "--ca",
        type=_FILE,
        help="Trust the certificate authorities in this PEM file; the default is those of this machine.",
    ),
    click.option(
        "--cert", type=_FILE, help="Present the client certificate in this PEM file, if the server asks for one."
    ),
    click.option("--key", type=_FILE, help="Use the private key in this PEM file with --cert."),
    click.option(
        "--api-key-file",
        type=_FILE,
        help=f"Read the API key from this file; the default is the variable {API_KEY_VARIABLE}.",
    ),
)


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --url, TLS and API key options to a command; it receives `connection`, the keyword arguments of `Client`."""

    @functools.wraps(command)
    def connected(
        url: str,
        tls: bool,
        ca: Path | None,
        cert: Path | None,
        key: Path | None,
        api_key_file: Path | None,
        **others: Any,
    ) -> Any:
        connection = {
            "address": url,
            "tls": tls,
            "root_certificates": ca,
            "certificate": cert,
            "key": key,
            "api_key": _api_key(api_key_file),
        }
        return command(connection=connection, **others)

    for option in reversed(_OPTIONS):
        connected = option(connected)
    return connected


def _api_key(file: Path | None) -> str | None:
    """Raises: InvalidRequest unless the file holds a single word."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    with file.open("rb") as opened:
        words = opened.read(4096).split()
    if len(words) != 1 or not words[0].isascii():
        raise InvalidRequest(f"{file} holds {len(words)} words; wanted one of ASCII characters, the API key")
    return words[0].decode("ascii")
