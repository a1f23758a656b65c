"""The gate that turns a URL into bytes or a typed error. Every entry point of the service goes through it."""

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
        """Raises: InvalidRequest if the policy forbids the URL, as far as that can be told without a DNS lookup."""
        self._plan(url)

    def fetch(self, url: str, is_cancelled: Callable[[], bool] = lambda: False) -> bytes:
        """Fetch the content of a URL.

        Args:
            is_cancelled: polled during the fetch; once it returns true, the fetch ends.
        Raises: InvalidRequest if the policy forbids the URL; MediaUnreachable if it cannot be fetched; Overloaded if too
            many other fetches are running; Cancelled as soon as the caller has disconnected.
        """
        job = self._plan(url)
        budget = Budget(time.monotonic() + self._seconds, self._media_bytes)
        running = self._threads.submit(job, budget)
        while not wait((running,), timeout=POLL_SECONDS).done:
            if is_cancelled():
                budget.stopped.set()
                running.cancel()
                raise Cancelled("the client disconnected")
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
                raise InvalidRequest("media_url names a file, which this server does not allow; send the media itself")
            path = path_below(root, url)
            return lambda _: read_below(root, path)
        address = self._allowed(url)
        return lambda budget: self._follow(url, address, budget)

    def _allowed(self, url: str) -> WebAddress:
        address = read_web_address(url)
        if address.scheme == "http" and not self._policy.plain_http:
            raise InvalidRequest("media_url is http, which this server does not allow; use https")
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
                raise MediaUnreachable(
                    f"{address.host} answered media_url with HTTP status {reply.status}; check the URL"
                )
            try:
                url = urljoin(url, reply.location)
            except ValueError as error:
                raise MediaUnreachable(f"{address.host} redirects media_url to an invalid URL") from error
            address = self._allowed(url)
        raise MediaUnreachable(
            f"media_url is redirected more than {FETCH_REDIRECTS.value} times (fetch_redirects); name the final URL"
        )
