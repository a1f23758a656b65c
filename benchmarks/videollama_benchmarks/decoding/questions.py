"""Whole requests in the scheduler: a question again, many at once, a prompt beside an answer."""

import statistics
import time
from typing import Any

import numpy as np

from videollama_benchmarks.decoding.batches import POSITIONS
from videollama_benchmarks.recording import spread
from videollama_core.generation.prefixes import KeptPrefixes
from videollama_core.generation.request import GenerationRequest
from videollama_core.generation.runner import Runner
from videollama_core.generation.scheduler import Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.protocol.messages import ResolvedSampling

TOKENS = 32


class Asked:
    """A request and when its tokens came."""

    def __init__(self, name: str, ids: np.ndarray, tokens: int) -> None:
        self.ids: list[int] = []
        self.times: list[float] = []
        sampling = ResolvedSampling(tokens, True, 1.0, 0, 1.0, 1.0, 0)
        self.request = GenerationRequest(name, ids, sampling, (), self._step, self._fail)

    def _step(self, step: Any) -> None:
        self.ids.append(step.token)
        self.times.append(time.perf_counter())

    @staticmethod
    def _fail(error: Exception) -> None:
        raise error


def run_all(scheduler: Scheduler) -> None:
    while scheduler.num_running or scheduler.num_waiting:
        scheduler.iterate()


def ask(scheduler: Scheduler, prompts: list[np.ndarray], tokens: int) -> list[Asked]:
    asked = [Asked(f"{number}", ids, tokens) for number, ids in enumerate(prompts)]
    for one in asked:
        scheduler.submit(one.request)
    run_all(scheduler)
    return asked


def prompts_of(vocab: int, count: int, media: int) -> list[np.ndarray]:
    """Questions of 20 tokens about the same 880 positions, which are others for each `media`."""
    seen = np.random.default_rng(media).integers(0, vocab, POSITIONS - 20)
    return [
        np.concatenate([seen, np.random.default_rng((media, number)).integers(0, vocab, 20)]) for number in range(count)
    ]


def repeated(runner: Runner, runs: int) -> dict[str, Any]:
    """Seconds until the first token of a first question, of a second about the same media, and of a text of 20 tokens;
    and of eight second questions with 32 tokens each until the last has ended, with and without what is kept."""
    forgetful = SlotSteps(runner)
    forgetful.prefixes = KeptPrefixes(0)
    kept, bare = Scheduler(SlotSteps(runner)), Scheduler(forgetful)
    vocab = runner.vocab_size
    [first, second] = prompts_of(vocab, 2, 10**6)
    ask(kept, [first], 1)
    assert ask(kept, [second], TOKENS)[0].ids == ask(bare, [second], TOKENS)[0].ids
    found: dict[str, list[float]] = {name: [] for name in ("first", "second", "text", "eight", "eight without", "one")}
    for number in range(runs):
        eight = prompts_of(vocab, 10, number)
        for name, scheduler, asked, tokens in (
            ("first", kept, eight[:1], 1),
            ("second", kept, eight[1:2], 1),
            ("text", kept, [eight[0][-20:]], 1),
            ("one", kept, eight[9:], TOKENS),
            ("eight", kept, eight[1:9], TOKENS),
            ("eight without", bare, eight[1:9], TOKENS),
        ):
            began = time.perf_counter()
            ask(scheduler, asked, tokens)
            found[name].append(time.perf_counter() - began)
    return {name: spread(values) for name, values in found.items()}


def beside(runner: Runner, runs: int) -> dict[str, Any]:
    """A prompt beside an answer: seconds between the answer's tokens, and until the prompt's first, each alone and together."""
    gaps: dict[str, list[float]] = {"alone": [], "beside": [], "longest": []}
    prefill: dict[str, list[float]] = {"alone": [], "beside": []}
    for number in range(runs):
        scheduler = Scheduler(SlotSteps(runner))
        [prompt] = prompts_of(runner.vocab_size, 1, 1000 + number)
        answering = Asked("answer", np.arange(20), 10**4)
        scheduler.submit(answering.request)
        while len(answering.times) < 12:
            scheduler.iterate()
        gaps["alone"].append(statistics.median(np.diff(answering.times)))
        one, before = Asked("prompt", prompt, 1), len(answering.times)
        began = time.perf_counter()
        scheduler.submit(one.request)
        while not one.times:
            scheduler.iterate()
        prefill["beside"].append(one.times[0] - began)
        between = np.diff([began, *answering.times[before:]])
        gaps["beside"].append(statistics.median(between))
        gaps["longest"].append(float(between.max()))
        run_all_quietly(scheduler, answering)
        began = time.perf_counter()
        ask(Scheduler(SlotSteps(runner)), [prompt], 1)
        prefill["alone"].append(time.perf_counter() - began)
    return {"gaps": {k: spread(v) for k, v in gaps.items()}, "prefill": {k: spread(v) for k, v in prefill.items()}}


def run_all_quietly(scheduler: Scheduler, stopped: Asked) -> None:
    """To the end, where a stopped request reports that it was."""
    stopped.request.on_error = lambda error: None
    scheduler.stop(stopped.request.request_id)
    run_all(scheduler)
