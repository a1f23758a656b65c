"""Rules and dashboard with the real programs: promtool, and a Prometheus that reads a real server and gateway."""

import json
import re
import socket
import subprocess
import time
from urllib.parse import urlencode

import httpx2
import pytest
import tritonclient.grpc as triton
import yaml
from tritonclient.utils import InferenceServerException

from conftest import MEDIA, ROOT, checkpoint, convert_once
from service.servers import gateway_of, serving
from videollama_core.protocol.errors import UnreadableMedia

FOLDER = ROOT / "deploy/observability"
PROGRAMS = ROOT / "build/prometheus/usr/bin"
RULES = ("alerts.yml", "vllm_names.yml")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def promtool(*words: object) -> str:
    done = subprocess.run([PROGRAMS / "promtool", *map(str, words)], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dashboard() -> dict[str, list[str]]:
    """Queries by title of their panel, with the variables' own values."""
    values = {"$__rate_interval": "1m", "$server": "videollama2", "$gateway": "videollama2-gateway"}
    by_title = {}
    for panel in json.loads((FOLDER / "dashboard.json").read_text("utf-8"))["panels"]:
        queries = [query["expr"] for query in panel["targets"]]
        for name, value in values.items():
            queries = [query.replace(name, value) for query in queries]
        by_title[panel["title"]] = queries
    return by_title


def test_promtool_reads_the_rules():
    assert promtool("check", "rules", *RULES).count("SUCCESS") == 2


def test_alerts_fire_in_trouble_and_at_no_other_time():
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_promtool_reads_the_dashboards_queries(tmp_path):
    queries = [query for panel in dashboard().values() for query in panel]
    rules = [{"record": f"query:{place}", "expr": query} for place, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", path)


class Prometheus:
    def __init__(self, address: str) -> None:
        self._api = f"http://{address}/api/v1"

    def ask(self, path: str, **options: str) -> dict:
        reply = httpx2.get(f"{self._api}/{path}?{urlencode(options)}", timeout=10).json()
        assert reply["status"] == "success", reply
        return reply["data"]

    def query(self, text: str) -> list[dict]:
        return self.ask("query", query=text)["result"]

    def wait(self, what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.query(what):
                    return
            except httpx2.TransportError:
                pass
            assert time.monotonic() < deadline, what
            time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """It has read a server and a gateway that answered, and refused, while it looked."""
    folder = tmp_path_factory.mktemp("prometheus")
    variant = "qwen2-clip-8f"
    with serving(convert_once(checkpoint(variant), variant), folder / "server.log") as server:
        with gateway_of("--server", server.grpc) as gateway:
            jobs = {"videollama2": server.metrics.split("/")[2], "videollama2-gateway": gateway}
            config = {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(FOLDER / name) for name in RULES],
                "scrape_configs": [
                    {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in jobs.items()
                ],
            }
            (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
            address = f"127.0.0.1:{free_port()}"
            command = [PROGRAMS / "prometheus", f"--config.file={folder / 'prometheus.yml'}"]
            command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
            log = (folder / "prometheus.log").open("wb")
            with subprocess.Popen(command, stdout=log, stderr=log) as process:
                try:
                    started = Prometheus(address)
                    started.wait("sum(up) == 2")
                    ask_around(server, gateway)
                    yield started
                finally:
                    process.terminate()
            log.close()


def ask_around(server, gateway: str) -> None:
    """For a few rounds of Prometheus: a rate needs a metric that grew while it looked."""
    video = (MEDIA / "plain_96x64.mp4").read_bytes()
    body = {"model": "videollama2", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 4}
    for place in range(4):
        with server.client() as client:
            for _ in range(2):
                client.ask("What happens?", video=video + bytes([place]), max_new_tokens=4)
            with pytest.raises(UnreadableMedia):
                client.ask("What happens?", video=b"no video", max_new_tokens=4)
        with triton.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException):
            client.infer("nowhere", [triton.InferInput("nothing", [0], "INT32")])
        assert httpx2.post(f"http://{gateway}/v1/chat/completions", json=body, timeout=60).status_code == 200
        assert httpx2.post(f"http://{gateway}/v1/chat/completions", json=body | {"model": "x"}).status_code == 404
        time.sleep(1.5)


def test_every_panel_shows_something(prometheus):
    prometheus.wait("vl2_rejected_total")
    for title, queries in dashboard().items():
        for query in queries:
            series = prometheus.query(query)
            assert series or "TensorRT-LLM" in title, (title, query)
            assert not [each for each in series if each["value"][1] == "NaN"], (title, query)


def test_rules_are_evaluated_and_a_healthy_server_alerts_nobody(prometheus):
    groups = prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 30 and {rule["health"] for rule in rules} == {"ok"}
    assert not [rule["name"] for rule in rules if rule["type"] == "alerting" and rule["alerts"]]
    names = re.findall(r"record: (vllm:\w+)", (FOLDER / "vllm_names.yml").read_text("utf-8"))
    assert len(names) > 20
    for name in names:
        assert prometheus.query(name), name
