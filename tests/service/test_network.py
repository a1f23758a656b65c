"""A server as deployed on a network: encrypted, with API keys, used from the command line."""

import signal
import subprocess
import time

from made_certificates import Authority
from service.servers import start, stop, vl2

VARIANT = "qwen2-clip-8f"


def test_an_encrypted_server_with_keys(bundle_of, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server", ("127.0.0.1",))
    keys, own, other = tmp_path / "keys", tmp_path / "own", tmp_path / "other"
    keys.write_text("first-key-0123456789 alice\n")
    keys.chmod(0o600)
    own.write_text("first-key-0123456789\n")
    other.write_text("second-key-0123456789\n")
    options = ("--tls-cert", certificate, "--tls-key", key, "--api-keys", keys)
    server = start(bundle_of(VARIANT), tmp_path / "log", *options)

    def ask(key_file) -> subprocess.CompletedProcess[str]:
        words = ("--url", server.grpc, "--ca", authority.certificate, "--api-key-file", key_file)
        return subprocess.run(
            vl2("ask", "Who?", "--max-new-tokens", 2, *words), capture_output=True, text=True, timeout=60
        )

    try:
        assert ask(own).returncode == 0
        refused = ask(other)
        assert refused.returncode == 2 and "NotAllowed" in refused.stderr and "Traceback" not in refused.stderr
        keys.write_text("second-key-0123456789 bob\n")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while ask(other).returncode and time.monotonic() < deadline:
            pass
        assert ask(other).returncode == 0 and ask(own).returncode == 2
    finally:
        assert stop(server) == 0
    assert "key-0123456789" not in server.log.read_text()
