"""What the operator lets a caller's URL name. The default is nothing."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from videollama_core.protocol.errors import InvalidRequest

POLICY_VARIABLE = "VL2_MEDIA_POLICY"  # the policy as JSON, for the stages
# A name ends in a label that is no number: what ends in one is an IPv4 address in one of its many spellings.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
HOST = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*[a-z]([a-z0-9-]{{0,61}}[a-z0-9])?")
PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class MediaPolicy:
    """
    Args:
        hosts: exact names and *.suffix (every name below it), each with :PORT where it is not the scheme's own.
        plain_http: http as well as https.
        root: folder whose files may be named as file:// URLs.
    Raises: InvalidRequest where one of them cannot be.
    """

    hosts: tuple[str, ...] = ()
    plain_http: bool = False
    root: str | None = None

    def __post_init__(self) -> None:
        for rule in self.hosts:
            name, colon, port = rule.partition(":")
            good_port = not colon or (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16)
            if not HOST.fullmatch(name.removeprefix("*.")) or not good_port:
                raise InvalidRequest(
                    f"--allow-media-hosts: {rule!r} is no host; wanted a name or *.suffix in ASCII, such as "
                    "media.example.org or *.example.org:8443"
                )
        if self.plain_http and not self.hosts:
            raise InvalidRequest("--allow-media-http came without --allow-media-hosts; name the hosts")
        if self.root is not None and not (os.path.isabs(self.root) and Path(self.root).is_dir()):
            raise InvalidRequest(f"--media-root: {self.root!r} is not a folder; name one")

    @property
    def is_open(self) -> bool:
        return bool(self.hosts) or self.root is not None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        return any(_matches(rule, scheme, host, port) for rule in self.hosts)

    def environment(self) -> dict[str, str]:
        return {POLICY_VARIABLE: json.dumps(asdict(self))}


def policy_of_options(hosts: str | None, plain_http: bool = False, root: Path | None = None) -> MediaPolicy:
    """The policy of `vl2 serve`'s options. Raises: InvalidRequest.

    Args:
        hosts: separated by commas.
    """
    names = tuple(name.strip().lower() for name in (hosts or "").split(",") if name.strip())
    return MediaPolicy(names, plain_http, None if root is None else os.path.abspath(root))


def policy_of_environment(environment: Mapping[str, str] = os.environ) -> MediaPolicy:
    found = json.loads(environment.get(POLICY_VARIABLE, "{}"))
    return MediaPolicy(tuple(found.get("hosts", ())), bool(found.get("plain_http")), found.get("root"))


def _matches(rule: str, scheme: str, host: str, port: int) -> bool:
    name, _, own_port = rule.partition(":")
    if port != int(own_port or PORTS[scheme]):
        return False
    return host.endswith(name[1:]) and host != name[2:] if name.startswith("*.") else host == name
