"""Media by URL: what may not be requested, what may not be reached, and a host that misbehaves."""

import os
import threading
import time
from dataclasses import replace

import pytest

from made_certificates import Authority
from media_host import CDN, HOST, NAMES, OTHER, PUBLIC, MediaHost, drip, led_here, moved, ok
from security.hostile_urls import ASKED, NOT_PUBLIC
from videollama_core.protocol.errors import Cancelled, InvalidRequest, MediaUnreachable, Overloaded, VideoLlamaError
from videollama_core.protocol.limits import FETCHES, MEDIA_BYTES
from videollama_server.fetch import transfer
from videollama_server.fetch.addresses import is_public
from videollama_server.fetch.gate import MediaGate
from videollama_server.fetch.policy import MediaPolicy, policy_of_environment, policy_of_options

AREA = "addresses"
POLICY = MediaPolicy((HOST, "*.cdn.example.org", f"{HOST}:8443"))
BODY = bytes(range(256)) * 40


def refused(table, name: str, wanted: tuple[type[VideoLlamaError], ...], act, within: float = 5.0) -> None:
    """One case: it raises one of the expected errors, in time, in words that do not reveal what is hidden."""
    began = time.monotonic()
    with pytest.raises(VideoLlamaError) as raised:
        act()
    seconds = time.monotonic() - began
    assert type(raised.value) in wanted and str(raised.value), (name, raised.value)
    assert seconds < within and len(str(raised.value)) < 400, (name, seconds)
    table.add(name, raised.value.kind, seconds)


def test_forbidden_urls_are_refused(case_table):
    gate = MediaGate(POLICY)
    for name, url in ASKED.items():
        refused(case_table, name, (InvalidRequest,), lambda url=url: gate.fetch(url), within=0.5)
    refused(
        case_table,
        "any URL, by default",
        (InvalidRequest,),
        lambda: MediaGate(MediaPolicy()).fetch(f"https://{HOST}/a"),
    )
    for url in (
        f"https://{HOST}/a?b=%20c&d",
        f"HTTPS://{HOST.upper()}:443",
        f"https://{HOST}:8443/a",
        f"https://{CDN}/a",
    ):
        gate.check(url)


def test_addresses_that_are_not_public_are_refused(case_table):
    gate = MediaGate(POLICY)
    for address in NOT_PUBLIC:
        with led_here(9, {HOST: [address]}):
            refused(
                case_table,
                f"name with the address {address}",
                (InvalidRequest,),
                lambda: gate.fetch(f"https://{HOST}/a"),
            )
    with led_here(9, {HOST: [PUBLIC, "10.0.0.1"]}):  # one of several is enough
        refused(
            case_table, "a public and a private address", (InvalidRequest,), lambda: gate.fetch(f"https://{HOST}/a")
        )
    with led_here(9, {HOST: []}):
        refused(case_table, "name without an address", (MediaUnreachable,), lambda: gate.fetch(f"https://{HOST}/a"))
    assert all(map(is_public, (PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def host(authority, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    host = MediaHost(*authority.sign("host", (HOST, "*.cdn.example.org")))
    host.answers["/ok"] = ok(BODY)
    yield host
    host.close()


def test_a_file_is_fetched_from_the_address_that_was_checked(host, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    host.answers |= {
        "/1": moved(f"https://{CDN}/2"),
        "/2": moved("3", 308),
        "/3": moved("//media.example.org/ok?x=1", 301),
        "/ok?x=1": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n2;x=y\r\nef\r\n0\r\n\r\n",
        "/until-the-end": b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    }
    rebinding = NAMES | {HOST: [[PUBLIC], ["127.0.0.1"]]}  # a second look-up would lead to this machine
    gate = MediaGate(POLICY)
    with led_here(host.port, rebinding):
        assert gate.fetch(f"https://{HOST}/ok") == BODY
    with led_here(host.port):
        assert gate.fetch(f"https://{HOST}/1") == b"abcdef"
        assert gate.fetch(f"https://{HOST}:8443/until-the-end") == b"until the end"
    assert host.asked == [
        f"GET /ok HTTP/1.1 | Host: {HOST}", f"GET /1 HTTP/1.1 | Host: {HOST}", f"GET /2 HTTP/1.1 | Host: {CDN}",
        f"GET /3 HTTP/1.1 | Host: {CDN}", f"GET /ok?x=1 HTTP/1.1 | Host: {HOST}",
        f"GET /until-the-end HTTP/1.1 | Host: {HOST}:8443",
    ]  # fmt: skip


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOTH, ONLY, MAY_NOT = (InvalidRequest, MediaUnreachable), (MediaUnreachable,), (InvalidRequest,)
HOSTS = {
    "redirect to another host": (moved(f"https://{OTHER}/ok"), MAY_NOT),
    "redirect to plain http": (moved(f"http://{HOST}/ok"), MAY_NOT),
    "redirect to this machine": (moved("https://127.0.0.1/ok"), MAY_NOT),
    "redirect to a cloud's metadata": (moved("http://169.254.169.254/"), MAY_NOT),
    "redirect to a file": (moved("file:///etc/passwd"), MAY_NOT),
    "redirect to another port": (moved(f"https://{HOST}:22/"), MAY_NOT),
    "redirect with a user name": (moved(f"https://x@{HOST}/ok"), MAY_NOT),
    "redirect to no URL": (moved("https://[::1/"), BOTH),
    "redirect in a circle": (moved("/x"), ONLY),
    "redirect without a target": (b"HTTP/1.1 302 Moved\r\nContent-Length: 0\r\n\r\n", ONLY),
    "status 404": (b"HTTP/1.1 404 None\r\n\r\n", ONLY),
    "status 206": (b"HTTP/1.1 206 Part\r\nContent-Length: 1\r\n\r\na", ONLY),
    "status 204": (b"HTTP/1.1 204 None\r\n\r\n", ONLY),
    "status 101": (b"HTTP/1.1 101 Switch\r\n\r\n", ONLY),
    "no content": (ok(b""), ONLY),
    "a body shorter than its length": (ok(b"abc", length=10), ONLY),
    "a length beyond any media": (ok(b"abc", length=2**40), MAY_NOT),
    "a length of 10,000 digits": (ok(b"abc").replace(b": 3", b": " + b"9" * 10_000), BOTH),
    "two different lengths": (ok(b"abc", "Content-Length: 5", length=4), ONLY),
    "compressed": (ok(b"abc", "Content-Encoding: gzip"), ONLY),
    "compressed twice": (ok(b"abc", "Content-Encoding: br, gzip"), ONLY),
    "HTTP 0.9": (b"just bytes", ONLY),
    "not HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", ONLY),
    "version 9": (b"HTTP/9.9 200 OK\r\n\r\n", ONLY),
    "a status of letters": (b"HTTP/1.1 abc OK\r\n\r\n", ONLY),
    "nothing at all": (b"", ONLY),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", BOTH),
    "a head line of 100,000 bytes": (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", ONLY),
    "1,000 head lines": (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"\r\n", ONLY),
    "100 Continue for ever": (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0), ONLY),
    "a chunk of -1": (CHUNKED + b"-1\r\nabc", ONLY),
    "a chunk of 2^80": (CHUNKED + b"FFFFFFFFFFFFFFFFFFFF\r\nabc", ONLY),
    "a chunk of letters": (CHUNKED + b"xyz\r\nabc", ONLY),
    "chunks without an end": (CHUNKED + b"3\r\nabc\r\n", ONLY),
    "a head that trickles": (drip(b"HTTP/1.1 200 OK\r\nX: "), ONLY),
    "a body that trickles": (drip(ok(b"", length=10**6)), ONLY),
    "chunks that trickle": (drip(CHUNKED, b"1\r\na\r\n"), ONLY),
    "silence": (lambda connection: time.sleep(20), ONLY),
    "a body without an end": (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 2**16, 0), ONLY),
}  # fmt: skip


def test_misbehaving_hosts_are_bounded(host, case_table):
    """With 1 second and 1 MiB for a fetch: neither is ever exceeded."""
    gate = MediaGate(POLICY, seconds=1.0, media_bytes=replace(MEDIA_BYTES, value=2**20))
    with led_here(host.port):
        for name, (answer, wanted) in HOSTS.items():
            host.answers["/x"] = answer
            refused(case_table, f"host: {name}", wanted, lambda: gate.fetch(f"https://{HOST}/x"), within=3.0)
        assert gate.fetch(f"https://{HOST}/ok") == BODY
    assert len(host.asked) == len(HOSTS) + 3 + 1  # nobody was asked who should not be: a circle is asked 3 times more


def test_certificates_must_match_the_name(host, authority, tmp_path, case_table):
    gate = MediaGate(MediaPolicy((HOST, OTHER)))
    with led_here(host.port):
        refused(case_table, "host: certificate of another name", ONLY, lambda: gate.fetch(f"https://{OTHER}/ok"))
    for name, signed in (
        ("expired", authority.sign("late", (HOST,), days=-1)),
        ("of an unknown authority", Authority(tmp_path, "unknown").sign("own", (HOST,))),
    ):
        other = MediaHost(*signed)
        with led_here(other.port):
            refused(case_table, f"host: certificate {name}", ONLY, lambda: gate.fetch(f"https://{HOST}/ok"))
        assert not other.asked
        other.close()


def test_cancelling_stops_the_fetch(host):
    gate, left = MediaGate(POLICY, seconds=20), threading.Event()
    host.answers["/slow"] = drip(ok(b"", length=10**6))
    with led_here(host.port):
        threading.Timer(0.3, left.set).start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            gate.fetch(f"https://{HOST}/slow", left.is_set)
        assert time.monotonic() - began < 3 and host.left.acquire(timeout=5)


def test_fetches_wait_for_each_other_and_give_up(host, monkeypatch):
    gate, errors = MediaGate(POLICY, seconds=1.0), []
    host.answers["/silent"] = lambda connection: time.sleep(3)
    monkeypatch.setattr(
        transfer.Budget, "seconds_left", lambda self: 2.0
    )  # those that run hold their places for longer

    def ask() -> None:
        try:
            gate.fetch(f"https://{HOST}/silent")
        except VideoLlamaError as error:
            errors.append(type(error))

    with led_here(host.port):
        threads = [threading.Thread(target=ask) for _ in range(FETCHES.value + 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert (errors.count(MediaUnreachable), errors.count(Overloaded)) == (FETCHES.value, 3)


@pytest.fixture
def root(tmp_path):
    """A folder to serve, beside one that must not be served."""
    root, outside = tmp_path / "root", tmp_path / "root-secret"
    (root / "below").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "clip.mp4").write_bytes(BODY)
    (root / "below" / "ä b.mp4").write_bytes(BODY)
    (root / "link.mp4").symlink_to("below/ä b.mp4")
    (root / "out").symlink_to(outside / "secret")
    (root / "out-folder").symlink_to(outside)
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "fifo")
    return root


def test_only_files_below_the_root_are_served(root, case_table):
    gate = MediaGate(policy_of_options(None, root=root))
    base = f"file://{root}"
    for path in ("clip.mp4", "below/%C3%A4%20b.mp4", "link.mp4"):
        assert gate.fetch(f"{base}/{path}") == BODY
    paths = {
        "outside": "file:///etc/passwd", "the environment of a process": "file:///proc/self/environ",
        "a sibling folder with the same prefix": f"{base}-secret/secret", "a parent folder by ..": f"{base}/../root-secret/secret",
        "a parent folder by %2e%2e": f"{base}/%2e%2e/root-secret/secret", "a parent folder by %2f": f"{base}/..%2froot-secret%2fsecret",
        "a parent folder by a double %": f"{base}/%252e%252e/root-secret/secret", "a link out": f"{base}/out",
        "a link to a folder outside": f"{base}/out-folder/secret", "a link in a circle": f"{base}/loop",
        "a link to nothing": f"{base}/dangling", "a fifo": f"{base}/fifo", "a folder": f"{base}/below",
        "the root itself": base, "the root with a slash": f"{base}/", "a missing file": f"{base}/missing",
        "a file as a folder": f"{base}/clip.mp4/x", "a NUL": f"{base}/clip.mp4%00.txt", "not UTF-8": f"{base}/%ff",
        "a host": f"file://host{root}/clip.mp4", "localhost": f"file://localhost{root}/clip.mp4",
        "a relative path": "file:clip.mp4", "a backslash": f"{base}/..%5croot-secret", "a double slash": f"{base}//clip.mp4",
        "a question mark": f"{base}/clip.mp4?x", "a name of 300 bytes": f"{base}/{'a' * 300}",
        "a line break": f"{base}/clip%0a.mp4", "an https URL": f"https://{HOST}/a",
    }  # fmt: skip
    for name, url in paths.items():
        refused(case_table, f"path: {name}", BOTH, lambda url=url: gate.fetch(url), within=2.0)
    refused(case_table, "path: any, by default", MAY_NOT, lambda: MediaGate(POLICY).fetch(f"{base}/clip.mp4"))


def test_a_link_that_appears_after_the_check_is_not_followed(root, monkeypatch, case_table):
    """realpath saw a folder; by the time it is opened it is a link."""
    gate, real = MediaGate(policy_of_options(None, root=root)), os.path.realpath

    def swapped(path, **more):
        resolved = real(path, **more)
        if resolved.endswith("below/secret"):
            (root / "below").rename(root / "moved")
            (root / "below").symlink_to(root.parent / "root-secret")
        return resolved

    (root / "below" / "secret").write_bytes(b"not secret")
    monkeypatch.setattr(os.path, "realpath", swapped)
    refused(
        case_table, "path: a link that appears after the check", ONLY, lambda: gate.fetch(f"file://{root}/below/secret")
    )


@pytest.mark.parametrize(
    "options",
    [
        {"hosts": "*"}, {"hosts": "*."}, {"hosts": "127.0.0.1"}, {"hosts": "[::1]"}, {"hosts": "https://a.org"},
        {"hosts": "a.org/b"}, {"hosts": "a.org:0"}, {"hosts": "a.org:x"}, {"hosts": "a.org:65536"}, {"hosts": "bücher.de"},
        {"hosts": "a.*.org"}, {"hosts": "a b"}, {"hosts": None, "plain_http": True}, {"hosts": "a.org."},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_policies_are_refused(options):
    with pytest.raises(InvalidRequest):
        policy_of_options(**options)


def test_a_policy_reaches_the_stages(root):
    policy = policy_of_options(f" {HOST.upper()}, *.cdn.example.org:8443 ,", True, root)
    assert policy.hosts == (HOST, "*.cdn.example.org:8443") and policy_of_environment(policy.environment()) == policy
    assert policy_of_environment({}) == MediaPolicy() and not MediaPolicy().is_open
    assert (
        policy.allows("http", HOST, 80) and policy.allows("https", CDN, 8443) and not policy.allows("https", CDN, 443)
    )
