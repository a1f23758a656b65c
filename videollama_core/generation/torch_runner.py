"""The decoder on PyTorch with preallocated slots: on a GPU if there is one, else on the CPU.

Slots are rows of one cache. A decoding step computes the first rows up to the highest decoding slot, rounded up to a power
of two, over the positions of the longest of them, rounded up: few shapes, so that a GPU can replay each as a CUDA graph.
Rows that are not part of the step write where the next real token of their slot will overwrite it.
H: key-value heads, G: query heads per key-value head, d: head dim, D: width.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from videollama_core.checkpoint.fill import fill
from videollama_core.checkpoint.shards import Shards
from videollama_core.engines.bundle import Bundle
from videollama_core.engines.torch_device import pick_device, pick_dtype
from videollama_core.engines.torch_encoders import CudaGraphCache
from videollama_core.generation.prefixes import spare_memory
from videollama_core.model.decoder import Decoder, DecoderLayer, rotary_tables, rotate
from videollama_core.protocol.errors import ArtifactMismatch
from videollama_core.sampling import Sampler

STEP = 512  # positions by which the part of the cache that a decoding step reads grows


class TorchScores:
    """Scores left on the device where they were computed: a GPU chooses for requests that take the best token."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits  # [B, vocab]

    def __getitem__(self, row: int) -> np.ndarray:
        return self._logits[row].float().cpu().numpy()

    def best(self, samplers: Sequence[Sampler]) -> list[int | None]:
        """The best token of each row after its request's penalty."""
        logits = self._logits.float()
        rows: list[int] = []
        ids: list[int] = []
        penalties: list[float] = []
        for row, sampler in enumerate(samplers):
            if sampler.penalty != 1:
                generated = set(sampler.generated)
                rows += [row] * len(generated)
                ids += generated
                penalties += [sampler.penalty] * len(generated)
        if rows:
            place = (torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device))
            penalty = torch.tensor(penalties, device=logits.device)
            scores = logits[place]
            logits = logits.index_put(place, torch.where(scores > 0, scores / penalty, scores * penalty))
        return list(logits.argmax(-1).tolist())


def load_decoder(bundle: Bundle, device: torch.device | None = None) -> Decoder:
    """The bundle's decoder (its `llm/` folder) on a device, in the bundle's dtype; loaded one tensor at a time.

    Raises: ArtifactMismatch, CheckpointMismatch.
    """
    with torch.device("meta"):
        decoder = Decoder(bundle.config.language)
    decoder = decoder.to(pick_dtype(bundle.dtype)).to_empty(device=device or pick_device())
    return fill(decoder, Shards.open(bundle.language_folder).sources(), "language model")


@dataclass(frozen=True)
class _Kept:
    """A copy of a slot's content, on its device."""

    values: Tensor  # [layers, 2, H, L, d]
    visible: Tensor  # bool [L]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


class TorchRunner:
    """A decoder with its KV cache, on the decoder's device and in its dtype. Raises: ArtifactMismatch if it does not fit."""

    def __init__(self, decoder: Decoder, num_slots: int, max_length: int) -> None:
        config = decoder.config
        self._decoder, self._config = decoder, config
        self.num_slots, self.max_length, self.vocab_size = num_slots, max_length, config.vocab_size
        self.device, self.dtype = decoder.lm_head.weight.device, decoder.lm_head.weight.dtype
        # One position more than a slot holds: rows that are not part of a step write there if their slot is full.
        shape = (config.layers, 2, num_slots, config.kv_heads, max_length + 1, config.head_dim)
        size = int(np.prod(shape)) * torch.finfo(self.dtype).bits // 8
        if self.device.type == "cuda" and size > 0.95 * torch.cuda.mem_get_info()[0]:
            free = torch.cuda.mem_get_info()[0]
            raise ArtifactMismatch(
                f"{num_slots} slots of {max_length} positions take {size / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB of the "
                "GPU are free: serve with fewer --slots or a shorter --max-seq-len"
            )
        self._cache = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self._visible = torch.zeros(num_slots, max_length + 1, dtype=torch.bool, device=self.device)
        self._length = [0] * num_slots
        self._steps: dict[tuple[int, int], CudaGraphCache] = {}
        on_gpu = self.device.type == "cuda"
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        self.spare_bytes = spare_memory(torch.cuda.mem_get_info()[0] if on_gpu else memory)

    def keep(self, slot: int) -> _Kept:
        length = self._length[slot]
        return _Kept(self._cache[:, :, slot, :, :length].clone(), self._visible[slot, :length].clone())

    def begin(self, slot: int, kept: _Kept, length: int) -> None:
        self._cache[:, :, slot, :, :length] = kept.values[:, :, :, :length]
        self._visible[slot, :length] = kept.visible[:length]
        self._length[slot] = length

    def free(self, slot: int) -> None:
        # Zeroed, because a step multiplies masked values by a weight of 0, which would not cancel NaN.
        self._cache[:, :, slot, :, : self._length[slot]] = 0
        self._length[slot] = 0

    @torch.inference_mode()
    def prefill(self, slot: int, ids: np.ndarray, media: np.ndarray | None, visible: np.ndarray) -> np.ndarray:
        begin, end = self._length[slot], self._length[slot] + len(ids)
        tokens = torch.from_numpy(ids).to(self.device)
        is_media = tokens >= self.vocab_size
        x = self._decoder.embed(tokens.masked_fill(is_media, 0))[None]
        if media is not None:
            rows = torch.from_numpy(media).to(self.device, self.dtype)
            x[0, is_media] = rows[tokens[is_media] - self.vocab_size]
        self._visible[slot, begin:end] = torch.from_numpy(visible).to(self.device)
        place = torch.arange(begin, end, device=self.device)
        mask = None
        if begin or not visible.all():
            keyed = torch.arange(end, device=self.device)
            mask = (keyed <= place[:, None]) & self._visible[slot, :end]
            mask |= keyed == place[:, None]  # a fully masked row would be NaN; its output is never used
        cos, sin = rotary_tables(place[None], self._config.head_dim, self._config.rope_theta)
        for number, layer in enumerate(self._layers()):
            query, key, value = self._project(layer, x, cos, sin)  # [1, heads, S, d]
            self._cache[number, :, slot, :, begin:end] = torch.cat([key, value])
            keys, values = self._cache[number, :, slot : slot + 1, :, :end]
            mixed = functional.scaled_dot_product_attention(
                query, self._repeat(keys), self._repeat(values), attn_mask=mask, is_causal=mask is None
            )
            x = self._finish(layer, x, mixed)
        self._length[slot] = end
        return self._decoder.lm_head(self._decoder.model.norm(x[:, -1])).float()[0].cpu().numpy()

    @torch.inference_mode()
    def decode(self, slots: list[int], tokens: list[int]) -> TorchScores:
        rows = min(1 << max(slots).bit_length(), self.num_slots)
        row_tokens = [0] * rows
        for slot, token in zip(slots, tokens, strict=True):
            row_tokens[slot] = token
        longest = max(self._length[slot] for slot in slots) + 1
        reach = min(-(-longest // STEP) * STEP, self.max_length + 1)
        step = self._steps.setdefault((rows, reach), CudaGraphCache(lambda *x: self._step(reach, *x), self.device))
        # A busy slot outside this step may be longer than the step reads; it, too, writes just after its own end.
        logits = step(torch.tensor(row_tokens), torch.tensor(self._length[:rows]))
        for slot in slots:
            self._length[slot] += 1
        return TorchScores(logits[torch.tensor(slots, device=self.device)])

    def _step(self, reach: int, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens int64 [B], lengths int64 [B] -> scores [B, vocab]."""
        count = len(tokens)
        row = torch.arange(count, device=self.device)
        x = self._decoder.embed(tokens)[:, None]
        cos, sin = rotary_tables(lengths[:, None], self._config.head_dim, self._config.rope_theta)
        self._visible[row, lengths] = True
        keyed = torch.arange(reach, device=self.device)
        mask = (self._visible[:count, :reach] & (keyed <= lengths[:, None]))[:, None, None]  # [B, 1, 1, reach]
        for number, layer in enumerate(self._layers()):
            query, key, value = self._project(layer, x, cos, sin)  # [B, heads, 1, d]
            self._cache[number, 0, row, :, lengths] = key[:, :, 0]
            self._cache[number, 1, row, :, lengths] = value[:, :, 0]
            keys, values = self._cache[number, :, :count, :, :reach]
            # The G query heads that share a key head are stacked as positions: keys and values are read once, in place.
            stacked = query.unflatten(1, (self._config.kv_heads, -1)).flatten(2, 3)  # [B, H, G, d]
            mixed = functional.scaled_dot_product_attention(stacked, keys, values, attn_mask=mask)
            x = self._finish(layer, x, mixed.flatten(1, 2)[:, :, None])
        return self._decoder.lm_head(self._decoder.model.norm(x[:, 0])).float()

    def _layers(self) -> list[DecoderLayer]:
        return list(self._decoder.model.layers)  # type: ignore[arg-type]

    def _project(self, layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, D] -> query and key [B, heads, S, d], rotated by their positions, and value."""
        attention, x = layer.self_attn, layer.input_layernorm(x)
        query, key, value = (
            project(x).unflatten(-1, (-1, self._config.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def _repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self._config.heads // self._config.kv_heads, dim=1)

    def _finish(self, layer: DecoderLayer, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        normed = layer.post_attention_layernorm(x)
        if normed.shape[1] == 1 and self._config.experts and not x.is_cpu:
            return x + layer.block_sparse_moe.dense(normed)  # static shapes, as a CUDA graph needs
        return x + layer.feed_forward(normed)
