"""Media + question -> answer: the whole service in one process and plain PyTorch; the tests use it as their oracle."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from videollama_core.checkpoint.parts import open_checkpoint
from videollama_core.contrast import NO_PIXELS, Noise, add_noise, contrast
from videollama_core.media.preprocess import prepare
from videollama_core.media.video import Segment
from videollama_core.model.frame_plan import plan_encoding
from videollama_core.prompt import MODALITIES, Prompt, check_length, render_prompt, tokenize_prompt
from videollama_core.protocol.errors import InvalidRequest
from videollama_core.protocol.messages import (
    Answer,
    Conversation,
    EncoderInputs,
    ResolvedSampling,
    SamplingOptions,
    Usage,
)
from videollama_core.sampling import Sampler
from videollama_core.text import Tokenizer, read_generation_defaults

Steps = Generator[np.ndarray, int, None]  # scores of the next token, float32 [vocab]; send() the chosen token


def contrasted(plain: Steps, noised: Steps, sampling: ResolvedSampling) -> Steps:
    """Decode two sequences in step, the second on noised pixels, and yield their contrasted scores."""
    scores = [next(plain), next(noised)]
    while True:
        token = yield contrast(scores[0], scores[1], sampling.vcd_alpha, sampling.vcd_beta)
        scores = [plain.send(token), noised.send(token)]


@dataclass
class Pipeline:
    """A checkpoint of any published layout, loaded as float32. Raises: CheckpointMismatch."""

    folder: Path
    tower: Path | None = None
    base: Path | None = None
    video_decoder: str | None = None  # one of video_decoders.DECODERS

    def __post_init__(self) -> None:
        parts = open_checkpoint(self.folder, self.tower, self.base)
        self.config = parts.config
        self.vision, self.connector, self.decoder = parts.vision_encoder(), parts.connector(), parts.decoder()
        self.audio = parts.audio_encoder()
        self.tokenizer = Tokenizer(parts.folders.language)
        self.defaults = read_generation_defaults(parts.folders.language, self.tokenizer)

    def prepare(
        self, kind: str, files: Sequence[bytes], segment: Segment = Segment(), pad: bool = False
    ) -> EncoderInputs:
        """Media -> pixels and filterbank. Raises: InvalidRequest, UnreadableMedia or BadSegment."""
        return prepare(kind, files, segment, self.config, pad, self.video_decoder)

    def media_tokens(self, media: EncoderInputs) -> torch.Tensor:
        """float32 [N, D]: vision tokens, then audio tokens."""
        parts = [self.encode_frames(media.frames)] if len(media.frames) else []
        parts += [self.encode_audio(media.filterbank)] if len(media.filterbank) else []
        return torch.cat(parts)

    def noised(self, media: EncoderInputs, noise: Noise) -> EncoderInputs:
        """The same media with noise in its pixels."""
        return replace(media, frames=add_noise(media.frames, noise, self.config.pixels))

    def encode_frames(self, frames: np.ndarray) -> torch.Tensor:
        """uint8 [T, S, S, 3], or float32 with noise -> float32 [N, D]."""
        plan = plan_encoding(frames, self.config)
        features = self.vision(torch.from_numpy(plan.distinct))
        steps = self.connector(features, torch.from_numpy(plan.frame_index))
        return steps[torch.from_numpy(plan.step_index)].flatten(0, 1)

    def encode_audio(self, filterbank: np.ndarray) -> torch.Tensor:
        """float32 [R, F] -> float32 [N, D]."""
        assert self.audio is not None  # `prepare` rejects audio for a checkpoint without an audio tower
        return self.audio(torch.from_numpy(filterbank)[None])[0]

    def prompt(self, conversation: Conversation, modality: str, num_media_tokens: int) -> Prompt:
        """Conversation -> prompt ids. Raises: InvalidRequest, PromptTooLong."""
        text = render_prompt(self.tokenizer, self.config.language.family, conversation, modality)
        vocab_size = self.config.language.vocab_size
        prompt = tokenize_prompt(self.tokenizer, text, modality, num_media_tokens, vocab_size)
        check_length(prompt, self.config.language.max_positions)
        return prompt

    def inputs_embeds(self, prompt: Prompt, media_tokens: torch.Tensor | None) -> torch.Tensor:
        """float32 [1, L + N, D]: text embeddings, with the media tokens at the media positions."""
        ids = torch.from_numpy(prompt.input_ids).long()
        vocab_size = self.config.language.vocab_size
        embeds = self.decoder.embed(ids.clamp(max=vocab_size - 1))
        if media_tokens is not None:
            media = ids >= vocab_size
            embeds[media] = media_tokens[ids[media] - vocab_size]
        return embeds[None]

    def logits(self, prompt: Prompt, media_tokens: torch.Tensor | None) -> Steps:
        """Yield scores of the next token, float32 [vocab]; send() the chosen token."""
        config = self.config.language
        embeds = self.inputs_embeds(prompt, media_tokens)
        visible = torch.from_numpy(prompt.input_ids != self.tokenizer.pad_id)  # the reference masks literal pad tokens
        past = torch.zeros(config.layers, 2, 1, config.kv_heads, 0, config.head_dim)
        while True:
            cached, new = past.shape[4], embeds.shape[1]
            key, query = torch.arange(cached + new), torch.arange(cached, cached + new)
            allowed = (key[None] <= query[:, None]) & visible[None]
            bias = torch.zeros(new, cached + new).masked_fill(~allowed, torch.finfo(torch.float32).min)
            scores, added = self.decoder(embeds, query[None], bias[None, None], torch.tensor([new - 1]), past)
            past = torch.cat([past, added], dim=4)
            token = yield scores[0].numpy()
            embeds = self.decoder.embed(torch.tensor([[token]]))
            visible = torch.cat([visible, torch.tensor([True])])

    @torch.inference_mode()
    def answer(
        self,
        conversation: Conversation,
        kind: str | None = None,
        files: Sequence[bytes] = (),
        segment: Segment = Segment(),
        options: SamplingOptions = SamplingOptions(),
    ) -> Answer:
        """Answer a conversation about the media, or about its text alone.

        Args:
            kind: one of MEDIA_KINDS; None without media.
            files: the media's encoded files; several for "frames" and "folder".
        Raises: InvalidRequest or one of its subclasses.
        """
        sampling = self.defaults.resolve(options)
        if sampling.contrasts and kind in (None, "audio"):
            raise InvalidRequest(NO_PIXELS)
        prepared = None if kind is None else self.prepare(kind, files, segment)
        media = None if prepared is None else self.media_tokens(prepared)
        modality = "text" if kind is None else MODALITIES[kind]
        prompt = self.prompt(conversation, modality, 0 if media is None else len(media))
        sampler = Sampler(sampling)
        steps = self.logits(prompt, media)
        if sampling.contrasts and prepared is not None:
            noised = self.noised(prepared, Noise(sampling.vcd_noise_step, sampling.seed))
            steps = contrasted(steps, self.logits(prompt, self.media_tokens(noised)), sampling)
        scores = next(steps)
        while True:
            token = sampler.choose(scores)
            if token in self.defaults.end_ids or len(sampler.generated) == sampling.max_new_tokens:
                break
            scores = steps.send(token)
        return Answer(
            text=self.tokenizer.decode(sampler.generated).strip(),
            output_ids=sampler.generated,
            finish_reason="stop" if token in self.defaults.end_ids else "length",
            usage=Usage(prompt.text_tokens, prompt.media_tokens, len(sampler.generated)),
            seconds={},
        )
