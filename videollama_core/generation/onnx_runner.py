"""The decoder on ONNX Runtime, with a KV cache of slots that is read in place at every step."""

import os
from dataclasses import dataclass

import numpy as np

from videollama_core.engines.bundle import Bundle
from videollama_core.engines.onnx_runtime import OnnxEngine
from videollama_core.engines.specs import DECODER, EMBEDDING
from videollama_core.generation.prefixes import spare_memory
from videollama_core.generation.runner import HostScores
from videollama_core.generation.slot_cache import SlotCache

HIDDEN = np.finfo(np.float32).min  # added to the score of a masked position


@dataclass(frozen=True)
class _Kept:
    """A copy of a slot's content."""

    values: np.ndarray  # float32 [layers, 2, H, L, d]
    visible: np.ndarray  # bool [L]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class OnnxRunner:
    """The decoder graph on ONNX Runtime."""

    def __init__(self, bundle: Bundle, num_slots: int, max_length: int, threads: int = 0) -> None:
        language = bundle.config.language
        self.num_slots, self.vocab_size = num_slots, language.vocab_size
        self.max_length = max_length
        self._inputs = DECODER.inputs_of(bundle.config)
        self._embedding = OnnxEngine(bundle.graph(EMBEDDING.name), EMBEDDING.inputs, EMBEDDING.outputs, threads)
        self._decoder = OnnxEngine(bundle.graph(DECODER.name), self._inputs, DECODER.outputs, threads)
        self._cache = SlotCache(num_slots, language.layers, language.kv_heads, language.head_dim)
        self.spare_bytes = spare_memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)

    def keep(self, slot: int) -> _Kept:
        return _Kept(self._cache.read(slot), self._cache.visible(slot).copy())

    def begin(self, slot: int, kept: _Kept, length: int) -> None:
        self._cache.reserve([slot], length)
        self._cache.append(slot, kept.values[:, :, :, :length], kept.visible[:length])

    def free(self, slot: int) -> None:
        self._cache.free(slot)

    def prefill(self, slot: int, ids: np.ndarray, media: np.ndarray | None, visible: np.ndarray) -> np.ndarray:
        cache, new = self._cache, len(ids)
        cache.reserve([slot], new)
        length = cache.length[slot]
        past = cache.past(cache.row(slot), 1)
        if not length:
            past = [layer[:, :, :0] for layer in past]  # the slot is empty: nothing to attend to
        cached = past[0].shape[2]
        bias = np.full((new, cached + new), HIDDEN, np.float32)
        bias[:, :length][:, cache.visible(slot)] = 0
        place = np.arange(new)
        bias[:, cached:][(place <= place[:, None]) & visible] = 0
        logits, added = self._run(
            self._embed(ids, media)[None], place[None] + length, bias[None, None], np.array([new - 1]), past
        )
        cache.append(slot, added[:, :, 0], visible)
        return logits[0]

    def decode(self, slots: list[int], tokens: list[int]) -> HostScores:
        cache, count = self._cache, len(slots)
        cache.reserve(slots, 1)
        rows = cache.line_up(slots)
        bias = np.full((count, 1, 1, cache.capacity + 1), HIDDEN, np.float32)
        bias[..., -1] = 0
        ids, positions = np.zeros((count, 1), np.int64), np.zeros((count, 1), np.int64)
        for slot, token, row in zip(slots, tokens, rows, strict=True):
            ids[row], positions[row] = token, cache.length[slot]
            bias[row, 0, 0, : cache.length[slot]][cache.visible(slot)] = 0
        embeds = self._embedding.run({"input_ids": ids})["inputs_embeds"]
        logits, added = self._run(embeds, positions, bias, np.zeros(count, np.int64), cache.past(0, count))
        visible = np.ones(1, bool)
        for slot, row in zip(slots, rows, strict=True):
            cache.append(slot, added[:, :, row], visible)
        return HostScores(logits[rows])

    def _embed(self, ids: np.ndarray, media: np.ndarray | None) -> np.ndarray:
        """Ids int64 [S] -> embeddings float32 [S, D], with the media rows at the media positions."""
        is_media = ids >= self.vocab_size
        embeds = self._embedding.run({"input_ids": np.where(is_media, 0, ids)[None]})["inputs_embeds"][0]
        if media is not None:
            embeds[is_media] = media[ids[is_media] - self.vocab_size]
        return embeds

    def _run(
        self, embeds: np.ndarray, positions: np.ndarray, bias: np.ndarray, last: np.ndarray, past: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        outputs = self._decoder.run(dict(zip(self._inputs, (embeds, positions, bias, last, *past), strict=True)))
        return outputs["logits"], outputs["new"]
