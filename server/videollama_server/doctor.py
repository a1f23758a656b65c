"""`vl2 doctor`: whether this machine can serve, and what is missing. Each check reports its finding and what to do."""

import json
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click

from videollama_core.engines.bundle import Bundle
from videollama_core.engines.machine_checks import FAIL, OK, WARN, Finding
from videollama_core.engines.table import ENCODER_ENGINES, LANGUAGE_ENGINES
from videollama_core.media.video_decoders import DECODERS, frame_decoder
from videollama_core.protocol.errors import VideoLlamaError
from videollama_server.installation import check_gpu_tables, find_installation
from videollama_server.machine.checks import machine_findings
from videollama_server.sandbox import confinement
from videollama_server.supervisor import ServerOptions

DRIVER_NEEDED = 590  # driver branch of the pinned container (CUDA 13.1)


def examine(
    bundle: Path | None = None, ports: tuple[int, ...] = (), decoder: str = ServerOptions().decoder
) -> list[Finding]:
    """Run all checks, including those of a bundle if one is named."""
    findings = [_python(), _triton(), *machine_findings(), _decoder(decoder), _confinement(decoder), _gpu(), _engines()]
    findings += [_port(port) for port in ports]
    if bundle is not None:
        findings += _bundle(bundle)
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Finding("Python", OK, version)
    return Finding("Python", FAIL, version, "use Python 3.11 or 3.12, which Triton's Python stages need (numpy 1)")


def _triton() -> Finding:
    with tempfile.TemporaryDirectory() as runtime:
        try:
            installation = find_installation(Path(runtime))
        except VideoLlamaError as error:
            return Finding("Triton server", FAIL, "none", str(error))
    origin = "the container's" if str(installation.binary).startswith("/opt/") else "the wheel's"
    return Finding("Triton server", OK, f"{origin}: {installation.binary}")


def _decoder(name: str) -> Finding:
    try:
        frame_decoder(name)
    except VideoLlamaError as error:
        return Finding("video decoder", FAIL, name, str(error))
    return Finding("video decoder", OK, name)


def _confinement(decoder: str) -> Finding:
    states = confinement.for_video_files(confinement.examine(), decoder)
    missing = [f"{part} {state}" for part, state in states.items() if state != confinement.IN_FORCE]
    if not missing:
        return Finding("media sandbox", OK, f"{' and '.join(states)} in force")
    if confinement.opens_devices(decoder):
        return Finding(
            "media sandbox", WARN, "; ".join(missing), "see docs/security.md for what a video file can then access"
        )
    advice = "only time and memory limits apply to decoding; use a kernel of 5.13 or newer, which has both"
    return Finding("media sandbox", WARN, "; ".join(missing), advice)


def _gpu() -> Finding:
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,memory.free",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("GPU", WARN, "none (no nvidia-smi)", "the server runs on the CPU; a GPU needs NVIDIA's driver")
    if done.returncode:
        return Finding(
            "GPU",
            WARN,
            f"nvidia-smi failed with exit code {done.returncode}",
            done.stdout.strip() or done.stderr.strip(),
        )
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    summary = "; ".join(f"{name}, driver {driver}, {free} of {total} MiB free" for name, driver, total, free in rows)
    oldest = min(int(driver.split(".")[0]) for _, driver, _, _ in rows)
    if oldest < DRIVER_NEEDED:
        advice = f"the pinned container needs driver branch {DRIVER_NEEDED} or newer; --engine torch needs only what PyTorch needs"
        return Finding("GPU", WARN, summary, advice)
    return Finding("GPU", OK, summary)


def _engines() -> Finding:
    encoders = [engine.package for engine in ENCODER_ENGINES.values()]
    packages = dict.fromkeys(encoders + [engine.package for engine in LANGUAGE_ENGINES.values()])
    versions = [f"{name} {metadata.version(name)}" for name in packages if find_spec(name) and _has_version(name)]
    if not versions:
        return Finding("engines", FAIL, "none", "pip install 'videollama2-service[serve]', which includes ONNX Runtime")
    return Finding("engines", OK, ", ".join(versions))


def _has_version(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Finding(
                f"port {port}", FAIL, str(error.strerror), "stop the program that listens there, or choose another port"
            )
    return Finding(f"port {port}", OK, "free")


def _bundle(path: Path) -> list[Finding]:
    try:
        bundle = Bundle.open(path)
    except VideoLlamaError as error:
        return [Finding("bundle", FAIL, str(path), str(error))]
    size = sum(int(entry["bytes"]) for entry in bundle.manifest["files"].values())
    weights = f", language model's weights in {bundle.quantization}" if bundle.quantization else ""
    summary = f"{bundle.manifest['name']}, {bundle.engine} in {bundle.dtype}{weights}, {size / 2**30:.2f} GiB"
    findings = [Finding("bundle", OK, summary)]
    if bundle.keeps_media_tokens_on_gpu:
        try:
            check_gpu_tables()
        except VideoLlamaError as error:
            findings.append(Finding("media tokens", FAIL, "cannot stay on the GPU here", str(error)))
    checked: list[Finding] = bundle.encoder_engine.load_machine_check()(bundle, size)
    return findings + checked


@click.command(epilog="Example: vl2 doctor build/2.1-7b --port 8001")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option(
    "--port",
    "ports",
    multiple=True,
    type=click.IntRange(0, 65535),
    default=(ServerOptions().grpc_port,),
    show_default=True,
    help="Check whether this port is free. Repeat it for several.",
)
@click.option(
    "--decoder",
    type=click.Choice(DECODERS),
    default=ServerOptions().decoder,
    show_default=True,
    help="Check this video decoder, and which parts of the sandbox are in force with it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def doctor(bundle: Path | None, ports: tuple[int, ...], decoder: str, as_json: bool) -> None:
    """Check whether this machine can serve BUNDLE (or anything), and report what is missing. Exit code 1 if a check fails."""
    findings = examine(bundle, ports, decoder)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            click.echo(f"{finding.state:5} {finding.check:14} {finding.detail}")
            if finding.advice and finding.state != OK:
                click.echo(f"{'':20} {finding.advice}")
    if any(finding.state == FAIL for finding in findings):
        sys.exit(1)
