"""A seeded mix of questions, cancellations, disconnects, deadlines and kills on one server, and what it leaves on the machine."""

import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from conftest import MEDIA
from service.servers import Server, alive, children
from videollama_client import VideoLlamaError
from videollama_server.sandbox.decoding import WAITING, WORKING

TOKENS = 12
QUESTIONS = (
    ("Who are you?", {}),
    ("What is there?", {"image": MEDIA / "image_90x50.png"}),
    ("What moves?", {"video": MEDIA / "plain_96x64.mp4"}),
    ("What turns?", {"video": MEDIA / "vfr_80x60.mp4", "start": 0.2}),
    ("What sounds?", {"audio": MEDIA / "tone_16k_mono_4s.wav"}),
    ("What is heard and seen?", {"video": MEDIA / "sample_demo_3.mp4", "with_audio": True}),
    ("And in pictures?", {"video": sorted((MEDIA / "frames_dir").iterdir())}),
)
STAGES = ("videollama2", "videollama2", "tensorrt_llm", "preprocess", "encoder")


@dataclass
class Tally:
    """Every request is in exactly one of `answered` and `failed`."""

    asked: int = 0
    answered: int = 0
    failed: Counter = field(default_factory=Counter)  # kind of error -> requests
    wrong: list[str] = field(default_factory=list)
    kills: Counter = field(default_factory=Counter)
    entry_seconds: list[float] = field(default_factory=list)  # from the entry's death until a new one answers
    lock: threading.Lock = field(default_factory=threading.Lock)


def quiet_answers(server: Server) -> list[list[int]]:
    with server.client() as client:
        return [client.ask(text, max_new_tokens=TOKENS, **media).output_ids for text, media in QUESTIONS]


def run_mix(server: Server, quiet: list[list[int]], requests: int, kills: int, seed: int, callers: int = 6) -> Tally:
    """Callers ask until `requests` are done; meanwhile stages are killed, spread over the run."""
    tally = Tally()
    threads = [threading.Thread(target=_call, args=(server, quiet, requests, seed + n, tally)) for n in range(callers)]
    for thread in threads:
        thread.start()
    _kill(server, requests, kills, random.Random(seed), tally)
    for thread in threads:
        thread.join()
    return tally


def _call(server: Server, quiet: list[list[int]], requests: int, seed: int, tally: Tally) -> None:
    chance = random.Random(seed)
    while True:
        with tally.lock:
            if tally.asked >= requests:
                return
            tally.asked += 1
        number = chance.randrange(len(QUESTIONS))
        kind = chance.choices(("whole", "cancel", "leave", "deadline"), (70, 10, 10, 10))[0]
        try:
            ids = _ask(server, number, kind, chance)
        except VideoLlamaError as error:
            with tally.lock:
                tally.failed[error.kind] += 1
        except BaseException as error:
            with tally.lock:
                tally.failed["untyped"] += 1
                tally.wrong.append(f"question {number}, {kind}: {error!r}")
        else:
            with tally.lock:
                tally.answered += ids is not None
                tally.failed["left"] += ids is None
                if ids is not None and ids != quiet[number]:
                    tally.wrong.append(f"question {number}, {kind}: {ids} in place of {quiet[number]}")


def _ask(server: Server, number: int, kind: str, chance: random.Random) -> list[int] | None:
    """The ids of a whole answer; None where this caller cancelled. The connection is its own, and closes with it."""
    text, media = QUESTIONS[number]
    with server.client() as client:
        timeout = chance.uniform(0.005, 0.3) if kind == "deadline" else 60
        stream = client.stream(text, max_new_tokens=TOKENS, timeout=timeout, **media)
        if kind in ("cancel", "leave"):
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, 0.1))
            else:
                next(iter(stream), None)
            if kind == "leave":
                return None
            stream.cancel()
        return stream.answer.output_ids


def _kill(server: Server, requests: int, kills: int, chance: random.Random, tally: Tally) -> None:
    """Kills a process of a stage each time another share of the requests has been sent."""
    for number in range(kills):
        while tally.asked < requests * (number + 1) / (kills + 1):
            time.sleep(0.01)
        stage = STAGES[number % len(STAGES)]
        wait_for(lambda stage=stage: server.pids(stage), 60)  # it may be being started again
        pids = server.pids(stage)
        began = time.monotonic()
        os.kill(chance.choice(pids), signal.SIGKILL)
        tally.kills[stage] += 1
        if stage == "videollama2":
            with server.client() as client:
                client.ask("Are you back?", max_new_tokens=1, timeout=60)
            tally.entry_seconds.append(time.monotonic() - began)


@dataclass(frozen=True)
class Footprint:
    """The machine resources that a server holds."""

    processes: int
    threads: int
    descriptors: int
    shared_files: int
    shared_bytes: int
    memory_bytes: int  # resident, shared memory once for each process that maps it

    @classmethod
    def of(cls, server: Server) -> "Footprint":
        (triton,) = children(server.process.pid, "tritonserver")
        group = members(triton) + children(server.process.pid, "videollama_server.endpoint")
        shared = [path.stat() for path in Path("/dev/shm").glob(f"{run_name(triton)}-*")]
        return cls(
            processes=sum(name_of(pid) not in (WAITING, WORKING) for pid in group),  # they come and go
            threads=sum(entries(f"/proc/{pid}/task") for pid in group),
            descriptors=sum(entries(f"/proc/{pid}/fd") for pid in group),
            shared_files=len(shared),
            shared_bytes=sum(one.st_blocks * 512 for one in shared),
            memory_bytes=sum(resident(pid) for pid in group),
        )


def members(group: int) -> list[int]:
    """Living processes of a process group, children of stages included."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in (b"Z", b"X"):
            pids.append(int(folder.name))
    return pids


def run_name(triton: int) -> str:
    """The name of this server's folder and shared memory, from Triton's command line."""
    words = Path(f"/proc/{triton}/cmdline").read_bytes().decode().split("\0")
    (prefix,) = (word.partition("prefix-name=")[2] for word in words if "shm-region-prefix-name=" in word)
    return prefix.removesuffix("-")


def name_of(pid: int) -> str:
    """Empty for a process that has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def entries(folder: str) -> int:
    """0 for a process that has ended meanwhile, as decoding processes do."""
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def wait_for(condition, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


def all_dead(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)
