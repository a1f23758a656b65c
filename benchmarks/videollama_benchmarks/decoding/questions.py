"""Measures whole requests in the scheduler: repeated questions, many at once, a prefill during decoding."""

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


class TimedRequest:
    """A request, its tokens and their times."""

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


def ask(scheduler: Scheduler, prompts: list[np.ndarray], tokens: int) -> list[TimedRequest]:
    """Answer all prompts at once, with `tokens` tokens each."""
    requests = [TimedRequest(f"{number}", ids, tokens) for number, ids in enumerate(prompts)]
    for request in requests:
        scheduler.submit(request.request)
    run_all(scheduler)
    return requests


def prompts_of(vocab: int, count: int, media: int) -> list[np.ndarray]:
    """Questions of 20 tokens after the same 880 positions, which differ for each `media`."""
    prefix = np.random.default_rng(media).integers(0, vocab, POSITIONS - 20)
    return [
        np.concatenate([prefix, np.random.default_rng((media, number)).integers(0, vocab, 20)])
        for number in range(count)
    ]


def repeated(runner: Runner, runs: int) -> dict[str, Any]:
    """Seconds until the first token of a first question, of a second one about the same media, and of a text of 20 tokens;
    and seconds until eight second questions are answered with 32 tokens each, with and without cached prefixes."""
    steps = SlotSteps(runner)
    steps.prefixes = KeptPrefixes(0)
    cached, uncached = Scheduler(SlotSteps(runner)), Scheduler(steps)
    vocab = runner.vocab_size
    [first, second] = prompts_of(vocab, 2, 10**6)
    ask(cached, [first], 1)
    assert ask(cached, [second], TOKENS)[0].ids == ask(uncached, [second], TOKENS)[0].ids
    times: dict[str, list[float]] = {name: [] for name in ("first", "second", "text", "eight", "eight without", "one")}
    for number in range(runs):
        eight = prompts_of(vocab, 10, number)
        for name, scheduler, prompts, tokens in (
            ("first", cached, eight[:1], 1),
            ("second", cached, eight[1:2], 1),
            ("text", cached, [eight[0][-20:]], 1),
            ("one", cached, eight[9:], TOKENS),
            ("eight", cached, eight[1:9], TOKENS),
            ("eight without", uncached, eight[1:9], TOKENS),
        ):
            began = time.perf_counter()
            ask(scheduler, prompts, tokens)
            times[name].append(time.perf_counter() - began)
    return {name: spread(values) for name, values in times.items()}


def prefill_during_decoding(runner: Runner, runs: int) -> dict[str, Any]:
    """Seconds between an answer's tokens and until a prompt's first token, each alone and both together."""
    gaps: dict[str, list[float]] = {"alone": [], "beside": [], "longest": []}
    prefill: dict[str, list[float]] = {"alone": [], "beside": []}
    for number in range(runs):
        scheduler = Scheduler(SlotSteps(runner))
        [prompt] = prompts_of(runner.vocab_size, 1, 1000 + number)
        answering = TimedRequest("answer", np.arange(20), 10**4)
        scheduler.submit(answering.request)
        while len(answering.times) < 12:
            scheduler.iterate()
        gaps["alone"].append(statistics.median(np.diff(answering.times)))
        prefilling, before = TimedRequest("prompt", prompt, 1), len(answering.times)
        began = time.perf_counter()
        scheduler.submit(prefilling.request)
        while not prefilling.times:
            scheduler.iterate()
        prefill["beside"].append(prefilling.times[0] - began)
        between = np.diff([began, *answering.times[before:]])
        gaps["beside"].append(statistics.median(between))
        gaps["longest"].append(float(between.max()))
        run_all_quietly(scheduler, answering)
        began = time.perf_counter()
        ask(Scheduler(SlotSteps(runner)), [prompt], 1)
        prefill["alone"].append(time.perf_counter() - began)
    return {"gaps": {k: spread(v) for k, v in gaps.items()}, "prefill": {k: spread(v) for k, v in prefill.items()}}


def run_all_quietly(scheduler: Scheduler, stopped: TimedRequest) -> None:
    """Stop a request, ignoring the error that it then reports, and run the others to their end."""
    stopped.request.on_error = lambda error: None
    scheduler.stop(stopped.request.request_id)
    run_all(scheduler)
