"""The corpus of hostile media: in process, and through a server beside a caller whose answers must not change."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import AUDIO_VARIANT, MEDIA
from security.measured import Measured, measured
from security.media_cases import Case, slow_pictures
from security.media_corpus import FAMILIES, case, corpus
from security.soak import name_of
from service.servers import Server, serving
from videollama_core.checkpoint.read_config import published_config
from videollama_core.generation.prefixes import PREFIX_VARIABLE
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.protocol.errors import InvalidRequest, VideoLlamaError
from videollama_server.sandbox.decoding import WORKING

AREA = "media corpus"
IN_PROCESS, THROUGH_SERVER = 1600, 300
SECONDS, MEGABYTES = 5.0, 1024.0
CALLERS = 4
NO_CACHE = ("--media-cache-megabytes", 0)  # what it keeps is no leak
PLACES = 3  # of the preprocess stage
STAGES = ("videollama2", "preprocess", "encoder", "tensorrt_llm")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def test_a_case_is_the_same_file_every_time():
    again = [case(number) for number in range(len(FAMILIES))]
    assert [case(number) for number in range(len(FAMILIES))] == again
    assert len({made.files for made in again}) == len(again)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_case_is_answered_or_refused_within_the_limits(case_table):
    audio_visual = published_config("VideoLLaMA2.1-7B-AV")
    config = replace(audio_visual, pixels=published_config("VideoLLaMA2-7B").pixels)
    by_family: dict[str, list[Measured]] = defaultdict(list)
    bad = []
    for number in range(IN_PROCESS):
        made = case(number)
        result = measured(lambda made=made: prepare(made.kind, made.files, _segment(made), config) and None)
        by_family[FAMILIES[number % len(FAMILIES)].__name__].append(result)
        if not result.typed or result.seconds > SECONDS or result.megabytes > MEGABYTES:
            bad.append((made.name, result))
    for family, results in by_family.items():
        counts = Counter(result.answer for result in results)
        told = ", ".join(f"{count} {answer}" for answer, count in counts.most_common())
        seconds, megabytes = (max(getattr(result, name) for result in results) for name in ("seconds", "megabytes"))
        case_table.add(f"{family.replace('_', ' ')}: {len(results)} files", told, seconds, megabytes)
    assert not bad, bad


def _segment(made: Case) -> Segment:
    return Segment(made.start, made.end)


# --- through a server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(bundle_of, tmp_path_factory):
    log = tmp_path_factory.mktemp("corpus") / "server.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PREFIX_VARIABLE, "0")  # likewise
        with serving(bundle_of(AUDIO_VARIANT), log, *NO_CACHE) as running:
            yield running


class Neighbour(threading.Thread):
    """Asks the same question about the same video until told to end; records every answer that differs from the first."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server, self._ended = server, threading.Event()
        self.wrong: list[object] = []
        self.answered = 0
        self.alone = self._ask()

    def _ask(self) -> list[int]:
        with self._server.client(timeout=60) as client:
            video = (MEDIA / "plain_96x64.mp4").read_bytes() + bytes(
                self.answered + 1 if self.ident else 0
            )  # not known yet
            return client.ask("What moves?", video=video, max_new_tokens=4).output_ids

    def run(self) -> None:
        while not self._ended.wait(0.2):
            try:
                outcome: object = self._ask()
            except Exception as error:
                outcome = error
            self.answered += 1
            if outcome != self.alone:
                self.wrong.append(outcome)

    def end(self) -> None:
        self._ended.set()
        self.join()


def send(server: Server, made: Case) -> tuple[str, float]:
    """The server's answer to one case: "answered", or the kind of its error; and the seconds it took."""
    began = time.monotonic()
    name = {"video_with_audio": "video", "frames": "video", "folder": "video"}.get(made.kind, made.kind)
    several = len(made.files) > 1 or made.kind in ("frames", "folder")
    media = {"video": list(made.files)} if several else {name: made.files[0]}
    options = {"with_audio": True} if made.kind == "video_with_audio" and not several else {}
    try:
        with server.client(timeout=60) as client:
            client.ask("What?", **media, **options, start=made.start, end=made.end, max_new_tokens=1)
        answer = "answered"
    except InvalidRequest as error:
        answer = error.kind
    except Exception as error:
        answer = f"{made.name}: {type(error).__name__}: {error}"
    return answer, time.monotonic() - began


def resident(server: Server) -> dict[str, float]:
    """MB of each stage and of the processes that it keeps."""
    megabytes = dict.fromkeys(STAGES, 0.0)
    for stage in STAGES:
        for pid in server.pids(stage):
            for one in (pid, *_children(pid)):
                rows = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
                megabytes[stage] += next(int(row.split()[1]) for row in rows if row.startswith("Private_Dirty:")) / 1024
    return megabytes


def _children(pid: int) -> list[int]:
    pids = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        pids += [int(word) for word in (task / "children").read_text().split()]
    return pids


def test_cancelled_requests_free_their_slots(server):
    """Sixteen callers take every slot with media that take a minute, and cancel; the next one waits for none of them."""
    with server.client(timeout=240) as client:
        client.ask("What?", image=MEDIA / "image_90x50.png", max_new_tokens=1)
        slow = slow_pictures(32)
        streams = [client.stream("What?", video=[*slow, bytes([number])], max_new_tokens=1) for number in range(16)]
        threads = [threading.Thread(target=_read, args=(stream,), daemon=True) for stream in streams]
        for thread in threads:
            thread.start()
        assert _comes(lambda: len(_decoding(server)) == PLACES, 120)
        for stream in streams:
            stream.cancel()
        began = time.monotonic()
        client.ask("What?", image=MEDIA / "image_41x83.jpg", max_new_tokens=1)
        assert time.monotonic() - began < 60  # the sixteen would take minutes
        assert _comes(lambda: not _decoding(server), 5)  # a process that has answered ends a moment later
        for thread in threads:
            thread.join(30)


def _read(stream) -> None:
    with suppress(VideoLlamaError):
        for _ in stream:
            pass


def _comes(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _decoding(server: Server) -> list[int]:
    """Processes that are decoding a request rather than waiting for one."""
    pids = [pid for stage in server.pids("preprocess") for spawner in _children(stage) for pid in _children(spawner)]
    return [pid for pid in pids if name_of(pid) == WORKING]


def test_hostile_media_do_not_affect_the_server_or_other_callers(server):
    cases = list(corpus(THROUGH_SERVER))
    with ThreadPoolExecutor(CALLERS + 1) as callers:
        list(callers.map(lambda made: send(server, made), cases[::3]))  # what so many callers allocate once is there
    processes = {stage: sorted(server.pids(stage)) for stage in STAGES}
    before = resident(server)
    neighbour = Neighbour(server)
    neighbour.start()
    with ThreadPoolExecutor(CALLERS) as callers:
        results = list(callers.map(lambda made: send(server, made), cases))
    neighbour.end()
    untyped = [answer for answer, _ in results if ":" in answer]
    assert not untyped, untyped
    assert max(seconds for _, seconds in results) < SECONDS * CALLERS  # at once, on whatever machine runs the tests
    assert neighbour.answered > 5 and not neighbour.wrong, neighbour.wrong[:3]
    assert {stage: sorted(server.pids(stage)) for stage in STAGES} == processes
    after = resident(server)
    assert sum(after.values()) < sum(before.values()) * 1.1, (before, after)
    assert {answer for answer, _ in results} >= {"answered", "UnreadableMedia"}
