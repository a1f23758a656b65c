"""Strict parsing of URLs, and resolution of their host names to public addresses."""

import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from videollama_core.protocol.errors import InvalidRequest, MediaUnreachable
from videollama_core.protocol.limits import MEDIA_URL_CHARACTERS
from videollama_server.fetch.policy import HOST, PORTS

# In addition to what `ipaddress` classifies as not global.
_REFUSED_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; one cloud's metadata is at 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's host agent
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
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
        "2001::/23",  # Teredo, benchmarking and other protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",
    )
)
_URL = re.compile(r"(https?)://([^/?#]*)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]*")


@dataclass(frozen=True)
class WebAddress:
    """The parts of an http or https URL."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, as sent in the request line

    @property
    def authority(self) -> str:
        """The Host header."""
        return self.host if self.port == PORTS[self.scheme] else f"{self.host}:{self.port}"


def check_characters(url: str) -> None:
    """Raises: InvalidRequest on characters that are invalid in a URL: parsers would correct them in different ways."""
    MEDIA_URL_CHARACTERS.check(len(url), "media_url")
    if not _CHARACTERS.fullmatch(url):
        raise InvalidRequest(
            "media_url holds characters that are invalid in a URL, or a fragment (#); escape them as %XX"
        )


def read_web_address(url: str) -> WebAddress:
    """Parse http(s)://NAME[:PORT][/PATH][?QUERY], where NAME is a plain host name. Raises: InvalidRequest."""
    check_characters(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise InvalidRequest("media_url is not a URL that can be fetched; wanted https://HOST/PATH")
    scheme, authority = match[1].lower(), match[2]
    if "@" in authority:
        raise InvalidRequest("media_url holds a user name or password (@); leave it out")
    host, colon, port = authority.partition(":")
    if not HOST.fullmatch(host.lower()):
        raise InvalidRequest(
            "media_url does not name a plain host; use a host name, no IP address, %XX or trailing dot"
        )
    if colon and not re.fullmatch(r"[1-9][0-9]{0,4}", port):
        raise InvalidRequest("media_url has an invalid port; wanted a number from 1 to 65535")
    number = int(port) if colon else PORTS[scheme]
    return WebAddress(scheme, host.lower(), number, (match[3] or "/") + (match[4] or ""))


def is_public(address: str) -> bool:
    """Whether an address is on the public internet, and does not embed or translate to another one."""
    try:
        ip = ip_address(address)
    except ValueError:  # such as one with a zone, fe80::1%eth0
        return False
    if isinstance(ip, IPv6Address):
        return ip.is_global and ip in _GLOBAL_6 and not any(ip in network for network in _REFUSED_6)
    assert isinstance(ip, IPv4Address)
    return ip.is_global and not any(ip in network for network in _REFUSED_4)


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """Resolve a host name to the family and socket address of each of its addresses.

    Raises: InvalidRequest if any of them is not public; MediaUnreachable if there are none.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise MediaUnreachable(f"the host {host} of media_url cannot be resolved; check the name") from error
    for *_, address in infos:
        if not is_public(str(address[0])):
            raise InvalidRequest(f"the host {host} of media_url resolves to an address that is not public")
    if not infos:
        raise MediaUnreachable(f"the host {host} of media_url cannot be resolved; check the name")
    return [(family, address) for family, _, _, _, address in infos]
