"""The scheduler's requests, its answers, and its state of a running request. L: length of the prompt; N, D as in messages.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from videollama_core.contrast import contrast
from videollama_core.protocol.errors import VideoLlamaError
from videollama_core.protocol.messages import ResolvedSampling
from videollama_core.sampling import Sampler


@dataclass(frozen=True)
class Step:
    """One new token of a request."""

    token: int
    logits: np.ndarray | None  # float32 [vocab], before any penalty; None unless requested
    last: bool
    cached_tokens: int = 0  # with the first token: prompt positions reused from the prefix cache


@dataclass
class GenerationRequest:
    """A prompt to continue.

    `on_step` and `on_error` are called from the scheduler's thread, in order, and never again after a last step, an error or
    a cancellation. `on_admitted` is called before them, when the request gets its slot. `is_cancelled` is called before every
    iteration for requests that run or could be admitted, and in turn for the rest of the queue.
    """

    request_id: str
    input_ids: np.ndarray  # int64 [L]; vocab_size + k is row k of `media`
    sampling: ResolvedSampling
    end_words: tuple[tuple[int, ...], ...]  # generation ends after any of these sequences
    on_step: Callable[[Step], None]
    on_error: Callable[[VideoLlamaError], None]
    media: np.ndarray | None = None  # float32 [N, D]; with a contrast [2N, D], the noised half last
    media_hashes: np.ndarray | None = None  # uint64 [L]: the media's hash at media positions (prompt_table_extra_ids)
    pad_id: int | None = None
    return_logits: bool = False
    is_cancelled: Callable[[], bool] = lambda: False
    on_admitted: Callable[[], None] = lambda: None

    @property
    def num_slots(self) -> int:
        """Slots that it needs: one per sequence."""
        return 2 if self.sampling.contrasts else 1

    def prompts(self, vocab_size: int) -> list[np.ndarray]:
        """The prompt's ids int64 [L] for each sequence."""
        ids = self.input_ids
        if not self.sampling.contrasts:
            return [ids]
        assert self.media is not None
        return [ids, np.where(ids >= vocab_size, ids + len(self.media) // 2, ids)]


@dataclass
class Running:
    """A request that holds slots, and its progress."""

    request: GenerationRequest
    sampler: Sampler
    slots: list[int]  # one per sequence
    prompts: list[np.ndarray]  # int64 [L], one per sequence
    prefilled: int = 0  # positions already in the slots, counted over the prompts in order
    positions: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 2), np.int64)
    )  # of the current prompt, once it was looked up: prefixes.py
    cached_tokens: int = 0  # of the first prompt: positions reused from an earlier prompt
    scores: list[np.ndarray] = field(default_factory=list)  # after each complete prompt

    @property
    def slot(self) -> int:
        return self.slots[0]

    @property
    def place(self) -> tuple[int, int]:
        """Number of the prompt that is being prefilled, and how many of its positions are done."""
        return divmod(self.prefilled, len(self.request.input_ids))

    @property
    def is_whole(self) -> bool:
        """Whether all prompts are prefilled."""
        return self.prefilled == sum(map(len, self.prompts))

    def combine(self, scores: Sequence[np.ndarray]) -> np.ndarray:
        """The scores of its sequences -> the scores to sample from, float32 [vocab]."""
        if len(scores) == 1:
            return scores[0]
        return contrast(scores[0], scores[1], self.request.sampling.vcd_alpha, self.request.sampling.vcd_beta)
