"""Machine limits: `vl2 doctor` reports each, and a start that one of them would break is refused with one line."""

import logging
import os
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path

from videollama_core.engines.machine_checks import FAIL, OK, WARN, Finding
from videollama_core.protocol.errors import ServerFailed
from videollama_core.protocol.limits import MEDIA_BYTES
from videollama_server.machine.runtime import SHARED, program_folder

logger = logging.getLogger(__name__)
MIB = 2**20
# Shared memory holds a request's media up to three times: input of the entry, its call to preprocess, input of preprocess.
MEDIA_COPIES = 3
BASE_SHARED_MEMORY = 32 * MIB  # all stages, without media
FULL_SHARED_MEMORY = BASE_SHARED_MEMORY + MEDIA_COPIES * MEDIA_BYTES.value
LEAST_FILES = 1024  # open files: Triton's, a few for each caller, and the stages'
START_THREADS = 1800  # a server starts with about 1,400 threads
LEAST_THREADS = 4096  # and has more after stages have died
WORN_THREADS = 2800  # Triton's, after some ten deaths of stages: it is restarted at the next idle moment
MOST_THREADS = 3600  # and here at once


def machine_findings() -> list[Finding]:
    """Run all checks."""
    return [shared_memory(), open_files(), threads(), programs()]


def check_machine(findings: Iterable[Finding] | None = None) -> None:
    """Log warnings about what will fail some requests. Raises: ServerFailed for what prevents any server from running."""
    for finding in machine_findings() if findings is None else findings:
        text = f"{finding.check}: {finding.detail}; {finding.advice}"
        if finding.state == FAIL:
            raise ServerFailed(text)
        if finding.state == WARN:
            logger.warning("%s", text)


def shared_memory(shared: Path = SHARED) -> Finding:
    """Check the free space in shared memory."""
    name = "shared memory"
    try:
        free = shutil.disk_usage(shared).free
    except OSError as error:
        advice = "mount it: the stages pass tensors through it"
        return Finding(name, FAIL, f"{shared}: {error.strerror}", advice)
    size = f"{free // MIB} MiB free in {shared}"
    if free >= FULL_SHARED_MEMORY:
        return Finding(name, OK, size)
    need = f"give it {FULL_SHARED_MEMORY // MIB} MiB (docker: --shm-size 2g)"
    if free < BASE_SHARED_MEMORY:
        return Finding(name, FAIL, size, f"the stages need {BASE_SHARED_MEMORY // MIB} MiB to start; {need}")
    largest = (free - BASE_SHARED_MEMORY) // MEDIA_COPIES // MIB
    return Finding(name, WARN, size, f"media above {largest} MiB will be refused; {need}")


def open_files() -> Finding:
    """Check the limit of open files; the soft limit is raised if it is too low and the hard limit allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**63 if hard == resource.RLIM_INFINITY else hard
    if 0 <= soft < LEAST_FILES <= most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LEAST_FILES, hard))
        soft = LEAST_FILES
    if 0 <= soft < LEAST_FILES:
        advice = (
            f"a server needs {LEAST_FILES}; raise it: ulimit -n {LEAST_FILES} (docker: --ulimit nofile={LEAST_FILES})"
        )
        return Finding("open files", FAIL, f"at most {soft} at a time", advice)
    return Finding("open files", OK, "without limit" if soft < 0 else f"at most {soft} at a time")


def threads(control_group: Path = Path("/sys/fs/cgroup")) -> Finding:
    """Check the thread limits of the control group and, except for root, of the user."""
    limits = [_number(control_group / "pids.max")]
    if os.geteuid():
        limits.append(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    finite = [limit for limit in limits if limit is not None and limit >= 0]
    if not finite:
        return Finding("threads", OK, "without limit")
    if min(finite) < LEAST_THREADS:
        state = FAIL if min(finite) < START_THREADS else WARN
        advice = f"a server may need {LEAST_THREADS}; raise it: ulimit -u {LEAST_THREADS} (docker: --pids-limit {LEAST_THREADS})"
        return Finding("threads", state, f"at most {min(finite)}", advice)
    return Finding("threads", OK, f"at most {min(finite)}")


def programs() -> Finding:
    """Check for a folder from which programs may run."""
    try:
        return Finding("run folder", OK, str(program_folder()))
    except ServerFailed as error:
        problem, _, advice = str(error).partition("; ")
        return Finding("run folder", FAIL, problem, advice)


def _number(path: Path) -> int | None:
    """The number in a control group's file; None if there is no file or no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
