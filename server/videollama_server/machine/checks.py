"""Limits of the machine on any server: `vl2 doctor` tells each, and a start that one of them would end is refused in a line."""

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
# A request's media lies in shared memory three times at most: as the entry's, as its question to preprocess, and as preprocess's.
MEDIA_COPIES = 3
BASE_SHARED_MEMORY = 32 * MIB  # of all stages, without media
FULL_SHARED_MEMORY = BASE_SHARED_MEMORY + MEDIA_COPIES * MEDIA_BYTES.value
LEAST_FILES = 1024  # open at a time: Triton's own, a few for each caller, and the stages'
START_THREADS = 1800  # of one server: about 1,400 run at first,
LEAST_THREADS = 4096  # and more once stages have died
WORN_THREADS = 2800  # of Triton, after its stages died some ten times: it is started anew at the next quiet moment,
MOST_THREADS = 3600  # and here at once


def machine_findings() -> list[Finding]:
    return [shared_memory(), open_files(), threads(), programs()]


def check_machine(findings: Iterable[Finding] | None = None) -> None:
    """Warn of what will refuse some requests. Raises: ServerFailed with what keeps any server from running here."""
    for finding in machine_findings() if findings is None else findings:
        told = f"{finding.check}: {finding.found}; {finding.advice}"
        if finding.state == FAIL:
            raise ServerFailed(told)
        if finding.state == WARN:
            logger.warning("%s", told)


def shared_memory(shared: Path = SHARED) -> Finding:
    name = "shared memory"
    try:
        free = shutil.disk_usage(shared).free
    except OSError as error:
        advice = "mount it: the stages hand tensors over in it"
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
    """The soft limit is raised to what is needed where the hard one allows it."""
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
    """By the control group, and for other users than root by the user's own limit."""
    limits = [_number(control_group / "pids.max")]
    if os.geteuid():
        limits.append(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    found = [limit for limit in limits if limit is not None and limit >= 0]
    if not found:
        return Finding("threads", OK, "without limit")
    if min(found) < LEAST_THREADS:
        state = FAIL if min(found) < START_THREADS else WARN
        advice = f"a server may need {LEAST_THREADS}; raise it: ulimit -u {LEAST_THREADS} (docker: --pids-limit {LEAST_THREADS})"
        return Finding("threads", state, f"at most {min(found)}", advice)
    return Finding("threads", OK, f"at most {min(found)}")


def programs() -> Finding:
    try:
        return Finding("run folder", OK, str(program_folder()))
    except ServerFailed as error:
        found, _, advice = str(error).partition("; ")
        return Finding("run folder", FAIL, found, advice)


def _number(path: Path) -> int | None:
    """Of a control group's file; None where there is none, or no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
