"""What the scheduler is asked, what it answers, and what it knows of a request that runs. L prompt length, N, D as in messages.py."""

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
    logits: np.ndarray | None  # float32 [vocab], before any penalty; None unless asked for
    last: bool
    cached_tokens: int = 0  # with the first token: positions of the prompt whose keys and values were there


@dataclass
class GenerationRequest:
    """A prompt to go on from.

    `on_step` and `on_error` are called from the scheduler's thread, in order; after a last step, an error or a
    cancellation comes nothing more; `on_admitted` before them, when the request gets its slot. `is_cancelled` is asked before every iteration once it may run, before that in turn.
    """

    request_id: str
    input_ids: np.ndarray  # int64 [L]; vocab_size + k is row k of `media`
    sampling: ResolvedSampling
    end_words: tuple[tuple[int, ...], ...]  # generation ends after any of these sequences
    on_step: Callable[[Step], None]
    on_error: Callable[[VideoLlamaError], None]
    media: np.ndarray | None = None  # float32 [N, D]; with a contrast [2N, D], the noised half behind the other
    media_hashes: np.ndarray | None = None  # uint64 [L]: of the media at their positions, as prompt_table_extra_ids
    pad_id: int | None = None
    return_logits: bool = False
    is_cancelled: Callable[[], bool] = lambda: False
    on_admitted: Callable[[], None] = lambda: None

    @property
    def num_slots(self) -> int:
        return 2 if self.sampling.contrasts else 1

    def prompts(self, vocab_size: int) -> list[np.ndarray]:
        """Ids int64 [L] of each sequence."""
        ids = self.input_ids
        if not self.sampling.contrasts:
            return [ids]
        assert self.media is not None
        return [ids, np.where(ids >= vocab_size, ids + len(self.media) // 2, ids)]


@dataclass
class Running:
    """A request and its place."""

    request: GenerationRequest
    sampler: Sampler
    slots: list[int]  # one for each sequence
    prompts: list[np.ndarray]  # int64 [L], likewise
    prefilled: int = 0  # positions of the prompts already in the slots, one prompt after the other
    positions: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 2), np.int64)
    )  # of the prompt in turn, once looked up: prefixes.py
    cached_tokens: int = 0  # of the first prompt's: taken from a prompt before it
    scores: list[np.ndarray] = field(default_factory=list)  # after each whole prompt

    @property
    def slot(self) -> int:
        return self.slots[0]

    @property
    def place(self) -> tuple[int, int]:
        """The prompt that is being taken in, by number, and how many of its positions are."""
        return divmod(self.prefilled, len(self.request.input_ids))

    @property
    def is_whole(self) -> bool:
        return self.prefilled == sum(map(len, self.prompts))

    def combine(self, scores: Sequence[np.ndarray]) -> np.ndarray:
        """The scores of its sequences -> those to choose from."""
        if len(scores) == 1:
            return scores[0]
        return contrast(scores[0], scores[1], self.request.sampling.vcd_alpha, self.request.sampling.vcd_beta)
