"""A machine that pauses, as a virtual one does while it migrates: afterwards everything goes on, and no process is taken for dead.

Triton gives a stage a second to say that it lives. When the machine awakes that second is over, and Triton may look first.
"""

import os
import signal
import threading
import time
from contextlib import suppress

from conftest import MEDIA
from security.soak import members, name_of
from service.servers import children
from videollama_server.sandbox.decoding import WAITING, WORKING

STAGES = ("videollama2", "tensorrt_llm", "preprocess", "encoder")
SET_SECONDS = 0.03  # for a busy machine until the flag is set: what stops before is lost (machine/stub_health.py)
CAUGHT = 5  # while a stage works
STILL_SECONDS, FIRST_SECONDS = 1.5, 0.2  # Triton awakes so much earlier than its stages


def stand_still(processes: list[int], signals: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signals)


def test_stages_survive_a_machine_that_is_paused(server_of):
    server = server_of("qwen2-clip-8f")
    before = {stage: server.pids(stage) for stage in STAGES}
    triton = children(server.process.pid, "tritonserver")
    stages = [pid for pids in before.values() for pid in pids]
    answers: dict[int, object] = {}

    def ask(number: int) -> None:
        try:
            media = {"video": MEDIA / "sample_demo_1.mp4", "start": 0.01 * (number + 1)}
            answers[number] = client.ask("What is this?", **media, max_new_tokens=4).output_ids
        except Exception as error:
            answers[number] = error

    caught = 0
    with server.client() as client:
        for number in range(20):
            waiting = [pid for pid in members(triton[0]) if name_of(pid) == WAITING]
            thread = threading.Thread(target=ask, args=(number,))
            thread.start()
            while thread.is_alive() and WORKING not in map(name_of, waiting):
                time.sleep(0.001)
            time.sleep(SET_SECONDS)
            if thread.is_alive():
                caught += 1
                stand_still([*triton, *stages], signal.SIGSTOP)
                time.sleep(STILL_SECONDS)
                stand_still(triton, signal.SIGCONT)
                time.sleep(FIRST_SECONDS)
                stand_still(stages, signal.SIGCONT)
            thread.join(60)
            assert isinstance(answers[number], list), answers[number]
            if caught == CAUGHT:
                break
    assert caught == CAUGHT and {stage: server.pids(stage) for stage in STAGES} == before
