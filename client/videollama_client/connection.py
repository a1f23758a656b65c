"""The server's address, how to connect to it, and the caller's credentials."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.experimental

from videollama_core.protocol.contract import MAX_ANSWER_BYTES
from videollama_core.protocol.errors import InvalidRequest

DEFAULT_ADDRESS = "localhost:8001"  # where `vl2 serve` listens by default
Metadata = tuple[tuple[str, str], ...]  # of one gRPC call
PemSource = str | os.PathLike[str] | bytes  # a path, or PEM text as bytes
MAX_PEM_BYTES = 2**20


@dataclass(frozen=True)
class Connection:
    """The address of a server and the credentials for it.

    Args:
        address: host:port.
        root_certificates, certificate, key: PEM text; any of them turns TLS on.
    Raises: InvalidRequest for an invalid address or API key, or a certificate without its key.
    """

    address: str
    tls: bool = False
    root_certificates: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_address(self.address)
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest(
                "a client certificate needs its private key, and the key its certificate; name both, or neither"
            )
        if self.api_key is not None and not _is_valid_key(self.api_key):
            raise InvalidRequest(
                "the API key is empty or holds characters other than printable ASCII without spaces; name a valid one"
            )

    @property
    def uses_tls(self) -> bool:
        return self.tls or self.root_certificates is not None or self.certificate is not None

    @property
    def metadata(self) -> Metadata:
        """The metadata sent with every call."""
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    @property
    def channel_options(self) -> list[tuple[str, int]]:
        """Messages may exceed gRPC's default of 4 MiB, because they carry media.

        A proxy is used only if gRPC's own variable names one, and never for this machine: http_proxy is meant for other
        programs.
        """
        use_proxy = bool(os.environ.get("grpc_proxy")) and not is_loopback(self.address)  # noqa: SIM112 - its name
        return [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
            ("grpc.enable_http_proxy", int(use_proxy)),
            # Reconnect soon after a server comes back, however long it was away.
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]

    def open(self) -> grpc.Channel:
        if not self.uses_tls:
            return grpc.insecure_channel(self.address, options=self._threaded_options)
        return grpc.secure_channel(self.address, self._credentials(), options=self._threaded_options)

    @property
    def _threaded_options(self) -> list[tuple[str, int]]:
        """`Call` reads in its own thread, so gRPC needs no extra one for each stream."""
        return [*self.channel_options, (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1)]

    def open_async(self) -> grpc.aio.Channel:
        if not self.uses_tls:
            return grpc.aio.insecure_channel(self.address, options=self.channel_options)
        return grpc.aio.secure_channel(self.address, self._credentials(), options=self.channel_options)

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.root_certificates, self.key, self.certificate)


def connection_to(
    address: str,
    tls: bool = False,
    root_certificates: PemSource | None = None,
    certificate: PemSource | None = None,
    key: PemSource | None = None,
    api_key: str | None = None,
) -> Connection:
    """Build a connection from the client's options, reading the PEM files now. Raises: InvalidRequest."""
    if not isinstance(tls, bool):
        raise InvalidRequest(f"tls is a {type(tls).__name__}; it takes True or False")
    return Connection(
        address,
        tls,
        _read_pem(root_certificates, "root_certificates"),
        _read_pem(certificate, "certificate"),
        _read_pem(key, "key"),
        api_key,
    )


def check_address(address: str) -> str:
    """Return the address. Raises: InvalidRequest unless it is host:port."""
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    good = host and "//" not in host and host.isascii() and host.isprintable() and " " not in host
    if not good or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 2**16):
        raise InvalidRequest(
            f"the address is {address!r}; wanted host:port of the server's gRPC port, such as localhost:8001"
        )
    return address


def is_loopback(address: str) -> bool:
    """Whether host:port is on the loopback interface of this machine."""
    host = address.rpartition(":")[0].strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_valid_key(api_key: str) -> bool:
    return isinstance(api_key, str) and api_key.isascii() and api_key.isprintable() and api_key.split() == [api_key]


def _read_pem(source: PemSource | None, name: str) -> bytes | None:
    """Raises: InvalidRequest unless it holds PEM text; the message never quotes the content, which may be a key."""
    if source is None:
        return None
    if isinstance(source, (bytes, bytearray)):
        content = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        try:
            path = Path(source)
            if not path.is_file() or path.stat().st_size > MAX_PEM_BYTES:
                raise InvalidRequest(f"{name}: {path} is not a file of PEM text; name one")
            content = path.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"{name}: {error.filename or 'the file'} cannot be read: {error.strerror}") from error
    else:
        raise InvalidRequest(f"{name} is a {type(source).__name__}; it takes a path, or PEM text as bytes")
    if b"-----BEGIN " not in content:
        raise InvalidRequest(f"{name} holds no PEM text (-----BEGIN ...); name a file that does")
    return content
