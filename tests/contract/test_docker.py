"""The images: linted, without root, every step a script that runs without docker, every name in use real."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from conftest import ROOT
from videollama_server.machine.checks import FULL_SHARED_MEMORY, LEAST_FILES, LEAST_THREADS

DOCKER = ROOT / "docker"
IMAGES = sorted(DOCKER.glob("*/Dockerfile"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", path.read_text("utf-8"))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.parent.name)
def test_images_are_linted(path):
    linter = shutil.which("hadolint", path=str(ROOT / ".venv/bin")) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint has no wheel for this platform")
    done = subprocess.run([linter, "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.parent.name)
def test_images_do_not_run_as_root_and_hold_no_secret(path):
    steps = instructions(path)
    users = [value for name, value in steps if name == "USER"]
    assert users and users[-1] == "10001:10001"
    assert "HEALTHCHECK" in [name for name, _ in steps]
    assert not re.search(r"(?i)(password|token|secret|api_key)\s*=", path.read_text("utf-8"))
    for name, value in steps:
        if name == "FROM":
            assert ":" in value and ":latest" not in value  # pinned


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.parent.name)
def test_every_step_is_a_script_of_the_tree(path):
    for name, value in instructions(path):
        if name == "RUN":
            for step in value.split("&&"):
                words = step.split()
                if words[0] == "rm":
                    continue
                assert words[0] == "sh" and (DOCKER / "steps" / Path(words[1]).name).is_file(), step
        if name == "COPY" and "--from" not in value and not value.startswith(". "):
            assert (ROOT / value.split()[0]).exists(), value


@pytest.mark.installs
def test_the_client_step(tmp_path):
    """The client image's step, run here: a bare install that works without torch."""
    venv = tmp_path / "venv"
    subprocess.run(["sh", DOCKER / "steps/install.sh", ROOT, venv], check=True, capture_output=True)
    assert subprocess.run([venv / "bin/vl2", "--help"], check=True, capture_output=True).stdout
    packages = {path.name for path in venv.glob("lib/python3*/site-packages/*")}
    assert "videollama_client" in packages and not packages & {"torch", "transformers", "onnxruntime", "av"}


def test_the_gpu_container_gets_what_serving_and_converting_need():
    """Installed without dependencies, so that no package of the container changes: each requirement is named or already
    there.
    """
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    needs = {re.split(r"[^\w-]", need)[0] for extra in ("serve", "convert") for need in extras[extra]}
    step = (DOCKER / "steps/install_in_container.sh").read_text("utf-8")
    named = {re.split(r"[^\w-]", word)[0] for word in re.findall(r'"([a-z][^"]*>=[^"]*)"', step)}
    # Not on that machine, or at the container's own version.
    apart = {
        "huggingface_hub",
        "numpy",
        "nvidia-pytriton",
        "onnxruntime",
        "torch",
        "transformers",
        "videollama2-service",
    }
    assert needs - apart <= named, needs - apart - named
    ranges = {word.partition(";")[0].strip() for extra in ("serve", "convert") for word in extras[extra]}
    asked = [word for word in re.findall(r'"([a-z][^"]*>=[^"]*)"', step) if re.split(r"[^\w-]", word)[0] in needs]
    assert set(asked) <= ranges  # the newest PyAV once came with it, which opens no file as ours are opened


def test_the_pinned_pyav_supports_metadata_errors():
    """19 has no `metadata_errors`: with it every video was refused."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (specifier,) = (Requirement(need).specifier for need in extras["serve"] if Requirement(need).name == "av")
    assert specifier.contains("18.1.0") and not specifier.contains("19.0.2")


def test_a_folder_is_converted_without_the_hub_client():
    """The GPU container's huggingface_hub is older than the one that downloads."""
    script = "import sys; sys.modules['huggingface_hub'] = None; from videollama_converters.locate import locate; "
    folder = ROOT / "tests/golden/mistral-clip-8f/checkpoint"
    done = subprocess.run(
        [sys.executable, "-c", script + f"print(locate({str(folder)!r}).checkpoint)"], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(folder), done.stderr


def test_the_user_step_is_valid():
    for script in (DOCKER / "steps").glob("*.sh"):
        subprocess.run(["sh", "-n", script], check=True)
    assert (
        subprocess.run(["sh", DOCKER / "steps/make_user.sh", "root", "0"], check=False, capture_output=True).returncode
        == 0
    )


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_services_have_a_read_only_root_and_no_privileges(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] and service["cpus"] and service["pids_limit"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert (DOCKER / source).exists(), source
    if "build" in service:
        assert service["tmpfs"][0].startswith("/tmp:exec")  # Triton starts the stub of its stages from there
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert any(
            volume.endswith(":/bundle:ro") for volume in service["volumes"]
        )  # weights are mounted, never baked in


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_server_is_limited_and_has_what_it_needs(name):
    """/tmp was mounted noexec, Docker's default, so Triton's stub could not run; nothing limited memory, threads or
    logs.
    """
    service = COMPOSE["services"][name]
    assert {"mem_limit", "cpus", "ulimits"} <= service.keys() and service["ulimits"]["nofile"] >= LEAST_FILES
    assert service["pids_limit"] >= LEAST_THREADS
    assert any(mount.startswith("/tmp:exec,") for mount in service["tmpfs"])
    assert int(service["shm_size"].removesuffix("gb")) * 2**30 >= FULL_SHARED_MEMORY
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()


def test_prometheus_and_the_dashboard_query_existing_targets():
    prometheus = yaml.safe_load((DOCKER / "prometheus.yml").read_text("utf-8"))
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == "server:8000" and COMPOSE["services"]["cpu"]["networks"]["default"]["aliases"] == ["server"]
    mounted = [
        (DOCKER / words[0], words[1])
        for service in ("prometheus", "grafana")
        for words in (volume.split(":") for volume in COMPOSE["services"][service]["volumes"])
        if words[0].startswith(".")
    ]
    assert all(path.exists() for path, _ in mounted)
    inside = {path for _, path in mounted}
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} < inside
    assert "/dashboards/videollama2.json" in inside
