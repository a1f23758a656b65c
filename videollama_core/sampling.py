"""Scores -> the next token, by the reference's rules and in its order: penalty, temperature, top-k, top-p."""

import numpy as np

from videollama_core.protocol.messages import ResolvedSampling


def penalise(logits: np.ndarray, generated: list[int], penalty: float) -> np.ndarray:
    """Apply the repetition penalty to tokens generated so far, never to the prompt's: divide positive scores by it,
    multiply the others.

    Args: logits float32 [vocab].
    """
    if penalty == 1 or not generated:
        return logits
    repeated = np.unique(generated)
    scores = logits[repeated]
    logits = logits.copy()
    logits[repeated] = np.where(scores > 0, scores / np.float32(penalty), scores * np.float32(penalty))
    return logits


def probabilities(scores: np.ndarray, sampling: ResolvedSampling) -> np.ndarray:
    """Token probabilities after temperature, top-k and top-p: float64 [vocab], summing to 1."""
    scores = scores.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores = np.where(scores < np.partition(scores, -sampling.top_k)[-sampling.top_k], -np.inf, scores)
    probs = np.exp(scores - scores.max())
    probs /= probs.sum()
    if sampling.top_p < 1:
        order = np.argsort(-probs, kind="stable")
        before = np.cumsum(probs[order]) - probs[order]  # mass of the better tokens; the best one is always kept
        probs[order[before >= sampling.top_p]] = 0
        probs /= probs.sum()
    return probs


class Sampler:
    """Chooses the tokens of one request; the same seed gives the same tokens, alone or in a batch."""

    def __init__(self, sampling: ResolvedSampling) -> None:
        self._sampling = sampling
        self._random = None if sampling.greedy else np.random.default_rng(sampling.seed)
        self.generated: list[int] = []

    @property
    def greedy(self) -> bool:
        return self._sampling.greedy

    @property
    def penalty(self) -> float:
        return self._sampling.repetition_penalty

    def choose(self, logits: np.ndarray) -> int:
        """Choose the next token from float32 [vocab] scores."""
        scores = penalise(logits, self.generated, self._sampling.repetition_penalty)
        if self._random is None:
            token = int(scores.argmax())
        else:
            token = int(self._random.choice(len(scores), p=probabilities(scores, self._sampling)))
        return self.take(token)

    def take(self, token: int) -> int:
        """Append a token that was chosen elsewhere."""
        self.generated.append(token)
        return token
