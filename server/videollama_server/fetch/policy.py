"""The operator's policy for media URLs. By default, none are allowed."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from videollama_core.protocol.errors import InvalidRequest

POLICY_VARIABLE = "VL2_MEDIA_POLICY"  # the policy as JSON, for the stages
# The last label must not be a number: such names are IPv4 addresses in one of their many notations.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
HOST = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*[a-z]([a-z0-9-]{{0,61}}[a-z0-9])?")
PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class MediaPolicy:
    """Which URLs may be fetched.

    Args:
        hosts: exact names and *.suffix (every name below it), with :PORT unless it is the scheme's default.
        plain_http: allow http as well as https.
        root: folder whose files file:// URLs may name.
    Raises: InvalidRequest for an invalid host, folder or combination.
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
                    f"--allow-media-hosts: {rule!r} is not a host; wanted a name or *.suffix in ASCII, such as "
                    "media.example.org or *.example.org:8443"
                )
        if self.plain_http and not self.hosts:
            raise InvalidRequest("--allow-media-http needs --allow-media-hosts; name the hosts")
        if self.root is not None and not (os.path.isabs(self.root) and Path(self.root).is_dir()):
            raise InvalidRequest(f"--media-root: {self.root!r} is not a folder; name one")

    @property
    def is_open(self) -> bool:
        return bool(self.hosts) or self.root is not None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Whether a host may be contacted."""
        return any(_matches(rule, scheme, host, port) for rule in self.hosts)

    def environment(self) -> dict[str, str]:
        """The environment variable that passes the policy to the stages."""
        return {POLICY_VARIABLE: json.dumps(asdict(self))}


def policy_of_options(hosts: str | None, plain_http: bool = False, root: Path | None = None) -> MediaPolicy:
    """Build the policy from the options of `vl2 serve`. Raises: InvalidRequest.

    Args:
        hosts: comma-separated.
    """
    names = tuple(name.strip().lower() for name in (hosts or "").split(",") if name.strip())
    return MediaPolicy(names, plain_http, None if root is None else os.path.abspath(root))


def policy_of_environment(environment: Mapping[str, str] = os.environ) -> MediaPolicy:
    """Read the policy from the environment of a stage."""
    fields = json.loads(environment.get(POLICY_VARIABLE, "{}"))
    return MediaPolicy(tuple(fields.get("hosts", ())), bool(fields.get("plain_http")), fields.get("root"))


def _matches(rule: str, scheme: str, host: str, port: int) -> bool:
    name, _, own_port = rule.partition(":")
    if port != int(own_port or PORTS[scheme]):
        return False
    return host.endswith(name[1:]) and host != name[2:] if name.startswith("*.") else host == name
