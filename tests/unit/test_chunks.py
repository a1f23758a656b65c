"""Prompt chunks between decoding steps: how large they are, and which request gets them."""

from counting_runner import CountingRunner, expected, request, run
from videollama_core.generation.chunks import LEAST, ChunkSizes
from videollama_core.generation.scheduler import Scheduler
from videollama_core.generation.steps import SlotSteps


class TimedRunner(CountingRunner):
    """A runner with its own clock: a chunk takes one second per position, a decoding step a fixed number of seconds."""

    def __init__(self, step: float) -> None:
        super().__init__(max_length=4096)
        self.now, self._step = 0.0, step
        self.turns: list[str] = []

    def prefill(self, slot, ids, media, visible):
        self.now += len(ids)
        self.turns.append(f"{len(ids)}")
        return super().prefill(slot, ids, media, visible)

    def decode(self, slots, tokens):
        self.now += self._step
        self.turns.append("step")
        return super().decode(slots, tokens)


def scheduler_on(runner: TimedRunner) -> Scheduler:
    return Scheduler(SlotSteps(runner, 512, clock=lambda: runner.now))


def test_chunks_are_whole_when_nothing_decodes_and_small_otherwise():
    runner = TimedRunner(step=70)
    scheduler = scheduler_on(runner)
    first, listener = request("first", [1] * 600, tokens=40)
    scheduler.submit(first)
    scheduler.iterate()
    scheduler.iterate()
    assert runner.chunks == [512, 88] and len(listener.ids) == 2
    second, other = request("second", [2] * 500, tokens=3)
    scheduler.submit(second)
    run(scheduler)
    assert runner.chunks[2:] == [128, 128, 128, 116]  # two steps' time, as a power of two
    begin = runner.turns.index("128")
    assert runner.turns[begin : begin + 8] == ["128", "step", "128", "step", "128", "step", "116", "step"]
    assert listener.ids == expected([1] * 600, 40) and other.ids == expected([2] * 500, 3)


def test_a_chunk_is_never_so_small_that_reading_the_weights_dominates():
    runner = TimedRunner(step=3)
    scheduler = scheduler_on(runner)
    scheduler.submit(request("first", [1] * 40, tokens=40)[0])
    scheduler.iterate()
    scheduler.submit(request("second", [2] * 200, tokens=3)[0])
    run(scheduler)
    assert set(runner.chunks[1:-1]) == {LEAST}


def test_a_tiny_models_chunks_may_take_ten_milliseconds_whatever_a_step_takes():
    for position, step, wanted in (
        (50e-6, 0.0005, 128),
        (1e-6, 0.0005, 512),
        (50e-6, 0.05, 512),
        (0.001, 0.001, LEAST),
    ):
        sizes = ChunkSizes(512)
        sizes.took_chunk(100, 100 * position)
        sizes.took_step(step)
        assert sizes.next(while_others_decode=True) == wanted


def test_a_short_question_does_not_wait_for_a_long_prompt():
    runner = TimedRunner(step=1)
    scheduler = scheduler_on(runner)
    scheduler.submit(request("long", [1] * 4000, tokens=3)[0])
    scheduler.iterate()
    made, listener = request("short", [5] * 9, tokens=3)
    scheduler.submit(made)
    for _ in range(4):
        scheduler.iterate()
    assert listener.ids == expected([5] * 9, 3) and 512 <= sum(runner.chunks) < 3000
    run(scheduler)


def test_a_repeated_question_does_not_wait_for_a_new_one():
    """Most of its long prompt is already cached."""
    runner = TimedRunner(step=1)
    scheduler = scheduler_on(runner)
    scheduler.submit(request("known", [7] * 900, tokens=3)[0])
    run(scheduler)
    scheduler.submit(request("long", [1] * 4000, tokens=3)[0])
    scheduler.iterate()
    made, listener = request("again", [7] * 900 + [8], tokens=3)
    scheduler.submit(made)
    for _ in range(4):
        scheduler.iterate()
    assert listener.ids == expected([7] * 900 + [8], 3)
    run(scheduler)


def test_many_short_questions_do_not_starve_a_long_one():
    runner = TimedRunner(step=1)
    scheduler = scheduler_on(runner)
    made, listener = request("long", [1] * 2000, tokens=1)
    scheduler.submit(made)
    for number in range(60):
        scheduler.submit(request(str(number), [5, number % 40], tokens=1)[0])
    for _ in range(8):
        scheduler.iterate()
    assert listener.last  # four chunks in eight iterations
    run(scheduler)


def test_chunk_sizes_follow_the_measured_times():
    sizes = ChunkSizes(512)
    assert sizes.next(False) == 512 and sizes.next(True) == LEAST  # nothing is known yet
    sizes.took_chunk(512, 512.0)
    sizes.took_step(1000.0)
    assert sizes.next(True) == 512
    for _ in range(40):
        sizes.took_step(50.0)
    assert sizes.next(True) == 64
    sizes.took_chunk(3, 1000.0)  # the rest of a prompt
    assert sizes.next(True) == 64
    assert ChunkSizes(8).next(True) == 8
