"""Makes batches of samples: media are prepared as by the service, and questions about the same media packed into one row."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from videollama_core.media.audio import BINS
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.model.config import ModelConfig
from videollama_core.protocol.errors import BadSample, VideoLlamaError
from videollama_core.protocol.messages import EncoderInputs
from videollama_core.text import Tokenizer
from videollama_training.data.samples import Sample
from videollama_training.data.tokens import Tokens, tokenize
from videollama_training.model import PADDING, SHARED, Batch


@dataclass(frozen=True)
class Row:
    """Conversations about the same media."""

    media: EncoderInputs | None
    tokens: tuple[Tokens, ...]  # all with the same ids before the media; a single one may have targets there


@dataclass
class BadSamples:
    """Skipped samples, in a file that worker processes append to."""

    path: Path | None  # None: the first bad sample ends the run

    def add(self, error: BadSample) -> None:
        """Record a bad sample. Raises: the error itself if none is skipped."""
        if self.path is None:
            raise error
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": str(error)}, ensure_ascii=False) + "\n")

    def count(self) -> int:
        """Number of distinct recorded faults."""
        if self.path is None or not self.path.exists():
            return 0
        return len(set(self.path.read_text("utf-8").splitlines()))


@dataclass
class RowDataset(Dataset):
    """Rows of at most `questions` samples about the same media.

    Args:
        plain: use the pretraining format: that of the reference's audio-visual branch for a checkpoint with an audio tower, or else
            that of its main branch.
        cache_bytes: memory for caching prepared media.
        max_tokens: text is truncated to this length, as in the reference; media tokens do not count.
    """

    samples: Sequence[Sample]
    tokenizer: Tokenizer
    config: ModelConfig
    plain: bool = False
    questions: int = 8
    pad_to_square: bool = False
    bad: BadSamples = field(default_factory=lambda: BadSamples(None))
    cache_bytes: int = 2 * 2**30
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        groups: dict[object, list[Sample]] = {}
        for number, sample in enumerate(self.samples):
            separate = number if sample.media_turn else None  # turns before the media: its tokens cannot be shared
            groups.setdefault((sample.kind, sample.media, separate), []).append(sample)  # all text is one group
        self._rows = [
            group[place : place + self.questions]
            for group in groups.values()
            for place in range(0, len(group), self.questions)
        ]
        self._cache: dict[tuple[str, Path], EncoderInputs] = {}
        self._cached = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        """The row, or, if all its samples are bad, the next usable one.

        Raises: BadSample if bad samples end the run, or none is left.
        """
        for step in range(len(self._rows)):
            row = self._read(self._rows[(index + step) % len(self._rows)])
            if row.tokens:
                return row
        raise BadSample(f"none of {len(self.samples)} samples can be used; the reasons are in {self.bad.path}")

    def _read(self, samples: Sequence[Sample]) -> Row:
        form = "chat" if not self.plain else "plain" if self.config.audio is None else "placeholder"
        tokens: list[Tokens] = []
        for sample in samples:
            try:
                tokens.append(tokenize(sample, self.tokenizer, form, self.max_tokens))
            except BadSample as error:
                self.bad.add(error)
        media = samples[0].media
        if media is None or not tokens:
            return Row(None, tuple(tokens))
        try:
            return Row(self.prepared(samples[0].kind, media), tuple(tokens))
        except (VideoLlamaError, OSError) as error:
            for sample in samples:
                self.bad.add(BadSample(f"sample {sample.name}: {media}: {error}"))
            return Row(None, ())

    def media_lengths(self) -> list[int]:
        """Media tokens of each row; also 0 for media that the checkpoint has no tower for, which `_read` refuses."""
        lengths = []
        for sample, *_ in self._rows:
            try:
                lengths.append(0 if sample.media is None else self.config.tokens_of(sample.kind))
            except VideoLlamaError:
                lengths.append(0)
        return lengths

    def prepared(self, kind: str, media: Path) -> EncoderInputs:
        """The encoders' inputs for a media file, from the cache if possible. Raises: VideoLlamaError, OSError."""
        if (kind, media) in self._cache:
            return self._cache[kind, media]
        if media.is_dir():
            kind, files = "folder", [path.read_bytes() for path in sorted(media.iterdir()) if path.is_file()]
        else:
            files = [media.read_bytes()]
        inputs = prepare(kind, files, Segment(), self.config, self.pad_to_square)
        size = inputs.frames.nbytes + inputs.filterbank.nbytes
        if self._cached + size <= self.cache_bytes:
            self._cache[kind, media] = inputs
            self._cached += size
        return inputs


@dataclass
class LengthGroups(Sampler[int]):
    """Indices in random order, but so that the rows of each step have the same length.

    The remaining rows of each length fill the last steps together.
    """

    lengths: Sequence[int]
    rows_per_step: int
    seed: int
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = Random(f"{self.seed}/{self.epoch}")
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(self.lengths):
            groups.setdefault(length, []).append(index)
        steps: list[list[int]] = []
        rest: list[int] = []
        for group in groups.values():
            random.shuffle(group)
            whole = len(group) - len(group) % self.rows_per_step
            steps += [group[place : place + self.rows_per_step] for place in range(0, whole, self.rows_per_step)]
            rest += group[whole:]
        random.shuffle(steps)
        for step in [*steps, rest]:
            yield from step


@dataclass(frozen=True)
class Collator:
    """Makes a Batch of rows."""

    config: ModelConfig

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        vocab_size, media_count = self.config.language.vocab_size, self.config.media_tokens
        audio_count = 0 if self.config.audio is None else self.config.audio.tokens
        frames: list[np.ndarray] = []
        frame_index: list[np.ndarray] = []
        filterbanks: list[np.ndarray] = []
        media: list[int] = []
        sound: list[int] = []
        columns: list[dict[str, list[int]]] = []
        source, target = [], []
        frame_count = 0
        for number, row in enumerate(rows):
            tokens_of_media: list[int] = []
            media.append(-1)
            sound.append(-1)
            if row.media is not None and len(row.media.frames):
                media[-1] = len(frame_index)
                tokens_of_media += range(vocab_size, vocab_size + media_count)
                frames.append(row.media.frames)
                places = np.arange(frame_count, frame_count + len(row.media.frames))
                frame_index.append(np.resize(places, self.config.num_frames))
                frame_count += len(row.media.frames)
            if row.media is not None and len(row.media.filterbank):
                sound[-1] = len(filterbanks)
                first_audio = vocab_size + media_count
                tokens_of_media += range(first_audio, first_audio + audio_count)
                filterbanks.append(row.media.filterbank)
            first = row.tokens[0]
            media_at = first.media_at
            before = first.ids[:media_at] if media_at is not None else []
            shared = [*before, *tokens_of_media]
            ids, positions, question = list(shared), list(range(len(shared))), [SHARED] * len(shared)
            for place, is_target in enumerate(first.is_target[: len(before)]):
                if is_target:
                    source.append((number, place - 1))
                    target.append(before[place])
            for place, tokens in enumerate(row.tokens, start=1):
                start, begin = len(ids), 0 if media_at is None else media_at + 1
                after = tokens.ids[begin:]
                for offset, (token, is_target) in enumerate(zip(after, tokens.is_target[begin:], strict=True)):
                    if is_target and (offset or shared):
                        source.append((number, start + offset - 1 if offset else len(shared) - 1))
                        target.append(token)
                ids += after
                positions += range(len(shared), len(shared) + len(after))
                question += [place] * len(after)
            columns.append({"ids": ids, "positions": positions, "question": question})
        length = max(len(column["ids"]) for column in columns)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([column[name] + [value] * (length - len(column[name])) for column in columns])

        side = self.config.pixels.size
        no_audio = np.zeros((0, 0, BINS), np.float32)
        return Batch(
            frames=torch.from_numpy(np.concatenate(frames) if frames else np.zeros((0, side, side, 3), np.uint8)),
            frame_index=torch.from_numpy(
                np.stack(frame_index) if frame_index else np.zeros((0, self.config.num_frames), np.int64)
            ),
            filterbank=torch.from_numpy(np.stack(filterbanks) if filterbanks else no_audio),
            input_ids=padded("ids", 0),
            positions=padded("positions", 0),
            question=padded("question", PADDING),
            media=torch.tensor(media),
            sound=torch.tensor(sound),
            source=torch.tensor(source).view(-1, 2),
            target=torch.tensor(target),
        ).to_dict()
