"""Ports of a server, chosen before it starts."""

import socket

from videollama_core.protocol.errors import ServerFailed


def choose_ports(host: str, wanted: dict[str, int]) -> list[int]:
    """A free port for each 0, the others as they are.

    Args:
        wanted: option that names the port -> the port.
    Raises: ServerFailed if one is taken.
    """
    held: list[socket.socket] = []
    try:
        for flag, port in wanted.items():
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(probe)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except (OSError, OverflowError) as error:
                raise ServerFailed(
                    f"port {port} of {host} cannot be used ({getattr(error, 'strerror', None) or error}); choose another with {flag}, or 0 for a free one"
                ) from error
        return [probe.getsockname()[1] for probe in held]
    finally:
        for probe in held:
            probe.close()
