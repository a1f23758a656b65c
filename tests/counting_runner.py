"""A language model runner whose every score is a known function of its slot's content, for tests of the scheduler."""

import threading
from dataclasses import replace

import numpy as np

from videollama_core.generation.runner import HostScores
from videollama_core.generation.scheduler import GenerationRequest, Scheduler
from videollama_core.generation.steps import SlotSteps
from videollama_core.protocol.messages import ResolvedSampling

VOCAB = 50
END = 49


class CountingRunner:
    """The next token is (sum of the slot's ids + its length) modulo 48, so an answer depends on the whole history."""

    def __init__(self, num_slots: int = 4, max_length: int = 64) -> None:
        self.num_slots, self.max_length, self.vocab_size = num_slots, max_length, VOCAB
        self.content: list[list[int]] = [[] for _ in range(num_slots)]
        self.spare_bytes = 2**20
        self.batches: list[int] = []
        self.chunks: list[int] = []
        self.poison: int | None = None  # a decode step that meets this token fails

    def _scores(self, slot: int) -> np.ndarray:
        scores = np.zeros(VOCAB, np.float32)
        scores[(sum(self.content[slot]) + len(self.content[slot])) % 48] = 1
        return scores

    def prefill(self, slot, ids, media, visible):
        self.chunks.append(len(ids))
        self.content[slot] += ids.tolist()
        return self._scores(slot)

    def decode(self, slots, tokens):
        self.batches.append(len(slots))
        if self.poison in tokens:
            raise RuntimeError("poisoned")
        for slot, token in zip(slots, tokens, strict=True):
            self.content[slot].append(token)
        return HostScores(np.stack([self._scores(slot) for slot in slots]))

    def keep(self, slot):
        return np.array(self.content[slot])

    def begin(self, slot, kept, length):
        assert not self.content[slot]
        self.content[slot] = kept[:length].tolist()

    def free(self, slot):
        self.content[slot] = []


def scheduler_on(runner: CountingRunner, max_waiting: int = 128, prefill_chunk: int = 512) -> Scheduler:
    return Scheduler(SlotSteps(runner, prefill_chunk), max_waiting)


class Listener:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cached_tokens: list[int] = []  # as each step says it
        self.error = None
        self.last = False
        self.ended = threading.Event()

    def step(self, step) -> None:
        self.ids.append(step.token)
        self.cached_tokens.append(step.cached_tokens)
        self.last = step.last
        if step.last:
            self.ended.set()

    def fail(self, error) -> None:
        self.error = error
        self.ended.set()


def request(name: str, ids: list[int], tokens: int = 8, **more):
    listener = Listener()
    sampling = ResolvedSampling(tokens, True, 1.0, 0, 1.0, 1.0, 0)
    made = GenerationRequest(name, np.array(ids, np.int64), sampling, ((END,),), listener.step, listener.fail, **more)
    return made, listener


def expected(ids: list[int], tokens: int) -> list[int]:
    content, answer = list(ids), []
    for _ in range(tokens):
        answer.append((sum(content) + len(content)) % 48)
        content.append(answer[-1])
    return answer


def run(scheduler: Scheduler, iterations: int = 200) -> None:
    for _ in range(iterations):
        if not (scheduler.num_running or scheduler.num_waiting):
            return
        scheduler.iterate()
    raise AssertionError("requests are left")


def contrasted(name: str, tokens: int, prompt=(1, VOCAB, VOCAB + 1, 3), **more):
    """A question about two media rows, followed by the rows of the noised pixels."""
    made, listener = request(name, list(prompt), tokens, media=np.zeros((4, 4), np.float32), **more)
    made.sampling = replace(made.sampling, vcd_alpha=1.0, vcd_beta=0.0)
    return made, listener


def expected_contrast(tokens: int, prompt=(1, VOCAB, VOCAB + 1, 3), rows: int = 2) -> list[int]:
    """Two forward passes by CountingRunner's rule: the best of 2 * plain - noised, the first of equals."""
    plain, answer = list(prompt), []
    noised = [token + rows if token >= VOCAB else token for token in prompt]
    for _ in range(tokens):
        scores = np.zeros(VOCAB)
        scores[(sum(plain) + len(plain)) % 48] += 2
        scores[(sum(noised) + len(noised)) % 48] -= 1
        answer.append(int(scores.argmax()))
        plain.append(answer[-1])
        noised.append(answer[-1])
    return answer
