"""The addresses of a server: choosing and checking its ports before it starts."""

import socket

from videollama_core.protocol.errors import ServerFailed


def choose_ports(host: str, ports: dict[str, int]) -> list[int]:
    """Return the ports, with a free one for each 0.

    Args:
        ports: the port of each option that names one.
    Raises: ServerFailed if one cannot be used.
    """
    if not host:  # bind() takes it for every interface
        raise ServerFailed("--host is empty; name an address, or 0.0.0.0 for every interface")
    flag_of: dict[int, str] = {}
    for flag, port in ports.items():
        if port and flag_of.setdefault(port, flag) != flag:
            raise ServerFailed(f"{flag_of[port]} and {flag} are both {port}; choose another, or 0 for a free one")
    probes: list[socket.socket] = []
    try:
        for flag, port in ports.items():
            probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            probes.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError) as error:
                raise ServerFailed(
                    f"port {port} of {host} cannot be used ({getattr(error, 'strerror', None) or error}); choose another with {flag}, or 0 for a free one"
                ) from error
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def bracketed(host: str) -> str:
    """The host as it stands before a colon and a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
