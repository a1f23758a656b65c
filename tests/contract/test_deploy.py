"""deploy/: kubectl renders valid manifests, the commands that they start exist, and probes use HTTP."""

import copy
import json
import platform
import shlex
import shutil
import subprocess
import sys

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml

from conftest import ROOT
from videollama_client.cli import main_group
from videollama_core.protocol.contract import MEDIA_HEADER
from videollama_core.telemetry import metric_definitions

KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = [f"overlays/{path.name}" for path in sorted((KUBERNETES / "overlays").iterdir())]
TARGETS = ["base", *OVERLAYS, "kserve"]
SCHEMAS = {"LeaderWorkerSet": "leaderworkerset", "InferenceService": "inferenceservice"}
OF_KSERVE = ("minReplicas", "maxReplicas")  # the rest of a predictor is a pod's


@pytest.fixture(scope="module")
def rendered():
    kubectl = shutil.which("kubectl", path=str(ROOT / ".venv/bin")) or shutil.which("kubectl")
    if kubectl is None:
        assert (sys.platform, platform.machine()) != ("linux", "x86_64"), "kubectl is missing: make setup installs it"
        pytest.skip("kubectl has no wheel for this platform")
    known = {}

    def render(target: str) -> list[dict]:
        if target not in known:
            command = [kubectl, "kustomize", str(KUBERNETES / target)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert not done.stderr, done.stderr
            known[target] = list(yaml.safe_load_all(done.stdout))
        return copy.deepcopy(known[target])

    return render


def pods(thing: dict) -> dict[str, dict]:
    """Pod templates of a manifest by name."""
    spec = thing.get("spec", {})
    if thing["kind"] == "Deployment":
        return {"template": spec["template"]}
    if thing["kind"] == "LeaderWorkerSet":
        return {name: spec["leaderWorkerTemplate"][name] for name in ("leaderTemplate", "workerTemplate")}
    if thing["kind"] == "InferenceService":
        pod = {name: value for name, value in spec["predictor"].items() if name not in OF_KSERVE}
        return {"predictor": {"metadata": {"labels": {}}, "spec": pod}}
    return {}


def all_pods(things: list[dict]) -> list[dict]:
    return [pod for thing in things for pod in pods(thing).values()]


def check(thing: dict) -> None:
    """Raises: ValidationError of kubernetes_validate or of jsonschema."""
    version = kubernetes_validate.latest_version()
    if thing["kind"] not in SCHEMAS:
        kubernetes_validate.validate(thing, version, strict=True)
        return
    schema = json.loads((ROOT / f"tests/contract/schemas/{SCHEMAS[thing['kind']]}.json").read_text("utf-8"))
    jsonschema.validate(thing, schema)
    for pod in pods(thing).values():
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
        kubernetes_validate.validate(template, version, strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_manifests_are_valid(rendered, target):
    things = rendered(target)
    for thing in things:
        check(thing)
        assert thing["kind"] == "Namespace" or thing["metadata"]["namespace"] == "vl2"
    names = [(thing["kind"], thing["metadata"]["name"]) for thing in things]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("target", ["base", "overlays/multi-node", "kserve"])
def test_invalid_manifests_are_refused(rendered, target):
    wrong = (kubernetes_validate.ValidationError, jsonschema.ValidationError)
    for thing in rendered(target):
        for name in pods(thing):
            for change in (
                lambda container: container.update(ports=[{"containerPort": "grpc"}]),
                lambda container: container.update(readynessProbe={}),
                lambda container: container["resources" if "resources" in container else "securityContext"].update(x=1),
            ):
                broken = copy.deepcopy(thing)
                change(pods(broken)[name]["spec"]["containers"][0])
                with pytest.raises(wrong):
                    check(broken)


@pytest.mark.parametrize("target", TARGETS)
def test_probes_use_existing_http_paths(rendered, target):
    for pod in all_pods(rendered(target)):
        for container in pod["spec"]["containers"]:
            if container["name"] == "worker":
                continue  # it answers nobody; it ends with its leader
            paths = {"server": "/v2/health", "kserve-container": "/v2/health", "gateway": "/health"}[container["name"]]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert not {"grpc", "exec", "tcpSocket"} & container[probe].keys()
                asked = container[probe]["httpGet"]
                assert asked["path"] in (f"{paths}/ready", f"{paths}/live")
                assert asked["path"] == f"{paths}/ready" or probe != "readinessProbe"
                assert ports.get(asked["port"], asked["port"]) == (8080 if container["name"] == "gateway" else 8000)


@pytest.mark.parametrize("target", TARGETS)
def test_commands_are_valid_and_drain_within_the_grace_period(rendered, target):
    seen = set()
    for pod in all_pods(rendered(target)):
        for container in pod["spec"]["containers"]:
            words = container["args"] if len(container["args"]) > 1 else shlex.split(container["args"][0])
            if "vl2" not in words:
                assert container["name"] == "worker"
                continue
            name, *options = words[words.index("vl2") + 1 :]
            command = main_group.get_command(click.Context(main_group), name)
            values = command.make_context(name, list(options)).params
            seen.add(name)
            if name == "serve":
                needed = values["drain_delay_seconds"] + values["drain_seconds"]
                assert pod["spec"]["terminationGracePeriodSeconds"] > needed + 10
                assert values["drain_delay_seconds"] >= 2 * container["readinessProbe"]["periodSeconds"]
                assert (values["host"], values["grpc_port"], values["http_port"]) == ("0.0.0.0", 8001, 8000)
                assert values["start_seconds"] <= (
                    container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
                )
                mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
                assert mounts == {"/bundle", "/tmp", "/dev/shm"}
            elif name == "gateway":
                assert values["named"] == ("dns:vl2-servers:8001",) and values["port"] == 8080
    assert seen == ({"serve"} if target == "kserve" else {"serve", "gateway"})


@pytest.mark.parametrize("target", TARGETS)
def test_pods_have_no_privileges(rendered, target):
    for pod in all_pods(rendered(target)):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001  # of the images
        for container in pod["spec"]["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("target", [*OVERLAYS, "kserve"])
def test_images_are_pinned_and_servers_have_their_gpus(rendered, target):
    gpus = {"cpu": None, "gpu": 1, "tensor-parallel": 2, "multi-node": 8, "kserve": 1}[target.rpartition("/")[2]]
    for pod in all_pods(rendered(target)):
        (container,) = pod["spec"]["containers"]
        assert container["image"].endswith(":0.1.0")
        if container["name"] != "gateway":
            assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("target", ["base", *OVERLAYS])
def test_selectors_match_their_pods(rendered, target):
    things = rendered(target)
    labels = [pod["metadata"]["labels"] for pod in all_pods(things)]
    for thing in things:
        spec = thing.get("spec", {})
        if thing["kind"] == "Service":
            wanted = spec["selector"]
        elif thing["kind"] == "PodDisruptionBudget":
            wanted = spec["selector"]["matchLabels"]
        elif thing["kind"] == "NetworkPolicy":
            wanted = spec["podSelector"].get("matchLabels", {})
            assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
        else:
            continue
        assert any(wanted.items() <= each.items() for each in labels), thing["metadata"]["name"]
    (scaler,) = [thing["spec"] for thing in things if thing["kind"] == "HorizontalPodAutoscaler"]
    target_of = scaler["scaleTargetRef"]
    (scaled,) = [
        one for one in things if (one["kind"], one["metadata"]["name"]) == (target_of["kind"], target_of["name"])
    ]
    assert "replicas" not in scaled["spec"]  # or each `apply` would undo what was scaled
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == metric_definitions.WAITING.name


def test_third_party_balancers_hash_on_the_media_and_check_health_over_http():
    haproxy = (ROOT / "deploy/haproxy.cfg").read_text("utf-8")
    assert f"balance hdr({MEDIA_HEADER})" in haproxy and "uri /v2/health/ready" in haproxy
    envoy = yaml.safe_load((ROOT / "deploy/envoy.yaml").read_text("utf-8"))["static_resources"]
    (cluster,) = envoy["clusters"]
    (health,) = cluster["health_checks"]
    assert health["http_health_check"]["path"] == "/v2/health/ready" and "grpc_health_check" not in health
    manager = envoy["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert route["route"]["hash_policy"] == [{"header": {"header_name": MEDIA_HEADER}}]
    assert route["route"]["cluster"] == cluster["name"] == cluster["load_assignment"]["cluster_name"]
