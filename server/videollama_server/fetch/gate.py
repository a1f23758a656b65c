"""The gate: URL in, bytes out, or a typed error. Every way into the service asks it."""

import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import urljoin

from videollama_core.protocol.errors import Cancelled, InvalidRequest, MediaUnreachable, Overloaded
from videollama_core.protocol.limits import FETCH_REDIRECTS, FETCH_SECONDS, FETCHES, MEDIA_BYTES, Limit
from videollama_server.fetch.addresses import WebAddress, read_web_address
from videollama_server.fetch.files import is_file_url, path_below, read_below
from videollama_server.fetch.policy import MediaPolicy
from videollama_server.fetch.transfer import Budget, get, too_slow

POLL_SECONDS = 0.05
_MOVED = (301, 302, 303, 307, 308)


class MediaGate:
    """Fetches what the policy allows; safe to use from several threads.

    At most `fetches` run at a time, each for at most `fetch_seconds` (videollama_core/protocol/limits.py).
    """

    def __init__(
        self, policy: MediaPolicy, seconds: float = FETCH_SECONDS.value, media_bytes: Limit = MEDIA_BYTES
    ) -> None:
        self._policy, self._seconds, self._media_bytes = policy, seconds, media_bytes
        self._threads = ThreadPoolExecutor(FETCHES.value, thread_name_prefix="fetch")
        if policy.hosts:
            self._context = ssl.create_default_context()
            self._context.set_alpn_protocols(["http/1.1"])

    def check(self, url: str) -> None:
        """Raises: InvalidRequest for what may not be asked, as far as it can be said without looking anything up."""
        self._plan(url)

    def fetch(self, url: str, is_cancelled: Callable[[], bool] = lambda: False) -> bytes:
        """The content of a URL.

        Raises: InvalidRequest for what may not be asked; MediaUnreachable for what could not be fetched; Overloaded
            while too many others are fetched; Cancelled as soon as the caller has left.
        """
        job = self._plan(url)
        budget = Budget(time.monotonic() + self._seconds, self._media_bytes)
        running = self._threads.submit(job, budget)
        while not wait((running,), timeout=POLL_SECONDS).done:
            if is_cancelled():
                budget.stopped.set()
                running.cancel()
                raise Cancelled("the client left")
            if time.monotonic() > budget.deadline:
                budget.stopped.set()
                if running.cancel():
                    raise Overloaded(f"{FETCHES.value} other URLs are being fetched; try again later")
                raise too_slow()
        return running.result()

    def _plan(self, url: str) -> Callable[[Budget], bytes]:
        if not self._policy.is_open:
            raise InvalidRequest("media_url is not taken by this server; send the media itself")
        if is_file_url(url):
            root = self._policy.root
            if root is None:
                raise InvalidRequest("media_url names a file, and this server hands none out; send the media itself")
            path = path_below(root, url)
            return lambda _: read_below(root, path)
        address = self._allowed(url)
        return lambda budget: self._follow(url, address, budget)

    def _allowed(self, url: str) -> WebAddress:
        address = read_web_address(url)
        if address.scheme == "http" and not self._policy.plain_http:
            raise InvalidRequest("media_url is http, which is not taken by this server; use https")
        if not self._policy.allows(address.scheme, address.host, address.port):
            raise InvalidRequest(
                f"media_url names {address.host}:{address.port}, which is not among the hosts that this server fetches from"
            )
        return address

    def _follow(self, url: str, address: WebAddress, budget: Budget) -> bytes:
        for _ in range(FETCH_REDIRECTS.value + 1):
            reply = get(address, self._context, budget)
            if reply.status == 200:
                return reply.body
            if reply.status not in _MOVED or reply.location is None:
                raise MediaUnreachable(f"{address.host} answers media_url with the status {reply.status}")
            try:
                url = urljoin(url, reply.location)
            except ValueError as error:
                raise MediaUnreachable(f"{address.host} sends media_url on to what is no URL") from error
            address = self._allowed(url)
        raise MediaUnreachable(f"media_url is sent on more than {FETCH_REDIRECTS.value} times (fetch_redirects)")
