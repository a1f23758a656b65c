"""Runs the decoder on key-value slots. ONNX Runtime is the first runner; the scheduler knows only the interface."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from videollama_core.engines.bundle import Bundle
from videollama_core.engines.onnx_runtime import OnnxEngine
from videollama_core.engines.specs import DECODER, EMBEDDING
from videollama_core.sampling import Sampler

HIDDEN = np.finfo(np.float32).min  # added to the score of a position that must not be seen
_GROW = 256  # positions by which a slot's cache grows


class Scores(Protocol):
    """Scores of B rows, kept where they were computed until a row is asked for."""

    def __getitem__(self, row: int) -> np.ndarray:
        """float32 [vocab]"""
        ...

    def best(self, samplers: Sequence[Sampler]) -> list[int | None]:
        """The best token of each row after its request's penalty; None where the host had better choose."""
        ...


class HostScores:
    """Scores that lie on the host: choosing there costs no copy, so nothing is chosen before."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits  # float32 [B, vocab]

    def __getitem__(self, row: int) -> np.ndarray:
        return self._logits[row]

    def best(self, samplers: Sequence[Sampler]) -> list[int | None]:
        return [None] * len(samplers)


class Runner(Protocol):
    """Decoder steps on numbered slots, each holding one request's keys and values."""

    num_slots: int
    max_length: int  # positions that fit a slot
    vocab_size: int

    def prefill(self, slot: int, ids: np.ndarray, media: np.ndarray | None, visible: np.ndarray) -> np.ndarray:
        """Append prompt positions to a slot.

        Args:
            ids: int64 [S]; vocab_size + k is row k of `media`.
            media: float32 [N, D].
            visible: bool [S]; False where later positions must not look.
        Returns: scores after the last position, float32 [vocab].
        """
        ...

    def decode(self, slots: list[int], tokens: list[int]) -> Scores:
        """Append one token to each of several slots, in one step."""
        ...

    def free(self, slot: int) -> None:
        """Forget a slot's content."""
        ...


class _Cache:
    """Keys and values of one slot: float32 [layers, 2, H, capacity, d], of which `length` positions are written."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        layers, heads, width = shape
        self.values = np.zeros((layers, 2, heads, 0, width), np.float32)
        self.visible = np.zeros(0, bool)
        self.length = 0

    def append(self, values: np.ndarray, visible: np.ndarray) -> None:
        """values [layers, 2, H, S, d], visible [S]."""
        needed = self.length + values.shape[3]
        if needed > self.values.shape[3]:
            # In steps, and by half at least: a long answer copies its cache a few times, not at every token.
            capacity = max(-(-needed // _GROW) * _GROW, self.values.shape[3] * 3 // 2)
            grown = np.zeros((*self.values.shape[:3], capacity, self.values.shape[4]), np.float32)
            grown[:, :, :, : self.length] = self.values[:, :, :, : self.length]
            self.values = grown
            self.visible = np.concatenate([self.visible[: self.length], np.zeros(capacity - self.length, bool)])
        self.values[:, :, :, self.length : needed] = values
        self.visible[self.length : needed] = visible
        self.length = needed


class OnnxRunner:
    """The decoder graph on ONNX Runtime."""

    def __init__(self, bundle: Bundle, num_slots: int, max_length: int, threads: int = 0) -> None:
        language = bundle.config.language
        self.num_slots, self.vocab_size = num_slots, language.vocab_size
        self.max_length = max_length
        self._shape = (language.layers, language.kv_heads, language.head_dim)
        self._embedding = OnnxEngine(bundle.graph(EMBEDDING.name), EMBEDDING.inputs, EMBEDDING.outputs, threads)
        self._decoder = OnnxEngine(bundle.graph(DECODER.name), DECODER.inputs, DECODER.outputs, threads)
        self._caches = [_Cache(self._shape) for _ in range(num_slots)]

    def free(self, slot: int) -> None:
        self._caches[slot] = _Cache(self._shape)

    def prefill(self, slot: int, ids: np.ndarray, media: np.ndarray | None, visible: np.ndarray) -> np.ndarray:
        cache, new = self._caches[slot], len(ids)
        bias = np.full((1, 1, new, cache.length + new), HIDDEN, np.float32)
        seen = np.concatenate([cache.visible[: cache.length], visible])
        causal = np.arange(cache.length + new)[None] <= np.arange(cache.length, cache.length + new)[:, None]
        bias[0, 0][causal & seen[None]] = 0
        logits, added = self._run(
            self._embed(ids, media)[None],
            np.arange(cache.length, cache.length + new)[None],
            bias,
            np.array([new - 1]),
            np.ascontiguousarray(cache.values[:, :, None, :, : cache.length]),
        )
        cache.append(added[:, :, 0], visible)
        return logits[0]

    def decode(self, slots: list[int], tokens: list[int]) -> HostScores:
        caches = [self._caches[slot] for slot in slots]
        longest = max(cache.length for cache in caches)
        layers, heads, width = self._shape
        past = np.zeros((layers, 2, len(slots), heads, longest, width), np.float32)
        bias = np.full((len(slots), 1, 1, longest + 1), HIDDEN, np.float32)
        bias[..., -1] = 0
        for row, cache in enumerate(caches):
            past[:, :, row, :, : cache.length] = cache.values[:, :, :, : cache.length]
            bias[row, 0, 0, : cache.length][cache.visible[: cache.length]] = 0
        logits, added = self._run(
            self._embedding.run({"input_ids": np.array(tokens, np.int64)[:, None]})["inputs_embeds"],
            np.array([[cache.length] for cache in caches]),
            bias,
            np.zeros(len(slots), np.int64),
            past,
        )
        for row, cache in enumerate(caches):
            cache.append(added[:, :, row], np.ones(1, bool))
        return HostScores(logits)

    def _embed(self, ids: np.ndarray, media: np.ndarray | None) -> np.ndarray:
        """int64 [S] -> float32 [S, D], media rows spliced in."""
        is_media = ids >= self.vocab_size
        embeds = self._embedding.run({"input_ids": np.where(is_media, 0, ids)[None]})["inputs_embeds"][0]
        if media is not None:
            embeds[is_media] = media[ids[is_media] - self.vocab_size]
        return embeds

    def _run(self, *inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = self._decoder.run(dict(zip(DECODER.inputs, inputs, strict=True)))
        return outputs["logits"], outputs["new"]
