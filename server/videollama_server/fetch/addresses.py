"""URLs read strictly, and the addresses that their names may stand for."""

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from videollama_core.protocol.errors import InvalidRequest, MediaUnreachable
from videollama_core.protocol.limits import MEDIA_URL_CHARACTERS
from videollama_server.fetch.policy import HOST, PORTS

# Beside what `ipaddress` knows as not global.
_REFUSED_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata at 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_GLOBAL_6 = IPv6Network("2000::/3")  # mapped, NAT64, local, link-local and multicast addresses lie outside
_REFUSED_6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo, benchmarks and other protocols' own
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",
    )
)
_URL = re.compile(r"(https?)://([^/?#]*)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]*")


@dataclass(frozen=True)
class WebAddress:
    scheme: str
    host: str
    port: int
    target: str  # path and query, as they are asked for

    @property
    def authority(self) -> str:
        """The Host header."""
        return self.host if self.port == PORTS[self.scheme] else f"{self.host}:{self.port}"


def check_characters(url: str) -> None:
    """Raises: InvalidRequest on what no URL holds, which each reader would mend in its own way."""
    MEDIA_URL_CHARACTERS.check(len(url), "media_url")
    if not _CHARACTERS.fullmatch(url):
        raise InvalidRequest("media_url holds characters that no URL holds, or a fragment (#); write others as %XX")


def read_web_address(url: str) -> WebAddress:
    """Raises: InvalidRequest unless it is http(s)://NAME[:PORT][/PATH][?QUERY], with nothing odd about the name."""
    check_characters(url)
    found = _URL.fullmatch(url)
    if found is None:
        raise InvalidRequest("media_url is no URL of a scheme that is taken: https://HOST/PATH")
    scheme, authority = found[1].lower(), found[2]
    if "@" in authority:
        raise InvalidRequest("media_url holds a user name or password (@); leave it out")
    host, colon, port = authority.partition(":")
    if not HOST.fullmatch(host.lower()):
        raise InvalidRequest("media_url has no plain host name: no IP address, no %XX, no dot at the end")
    if colon and not re.fullmatch(r"[1-9][0-9]{0,4}", port):
        raise InvalidRequest("media_url has a port that is no number from 1 to 65535")
    number = int(port) if colon else PORTS[scheme]
    return WebAddress(scheme, host.lower(), number, (found[3] or "/") + (found[4] or ""))


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, and stands for nothing but itself."""
    try:
        found = ip_address(address)
    except ValueError:  # such as one with a zone, fe80::1%eth0
        return False
    if isinstance(found, IPv6Address):
        return found.is_global and found in _GLOBAL_6 and not any(found in refused for refused in _REFUSED_6)
    assert isinstance(found, IPv4Address)
    return found.is_global and not any(found in refused for refused in _REFUSED_4)


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """The family and socket address of each place that a name stands for.

    Raises: InvalidRequest if one of them is not public, whatever the others are; MediaUnreachable if there is none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise MediaUnreachable(f"the host {host} of media_url is not known") from error
    for *_, place in found:
        if not is_public(str(place[0])):
            raise InvalidRequest(f"the host {host} of media_url stands for an address that is not public")
    if not found:
        raise MediaUnreachable(f"the host {host} of media_url is not known")
    return [(family, place) for family, _, _, _, place in found]
