"""The whole model as one trainable module, from media and token ids to the loss.

Questions about the same media share its tokens: they follow one another in a row, each masked from the others, at the positions
that it would have alone. This is exact, and the tower runs once for all of them. R rows, L positions per row, M images and
videos, T frames of each, U frames in total, A audio clips, K predicted tokens.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn import functional

from videollama_core.checkpoint.parts import CheckpointParts
from videollama_core.model import audio as audio_module
from videollama_core.model import connector as connector_module
from videollama_core.model import decoder as decoder_module
from videollama_core.model import vision as vision_module
from videollama_core.model.config import ModelConfig
from videollama_core.model.decoder import Decoder
from videollama_core.model.frame_plan import plan_time_steps
from videollama_training.loading import Loading, load

SHARED, PADDING = 0, -1  # values of `Batch.question`


@dataclass
class Batch:
    """The output of `Collator`."""

    frames: Tensor  # uint8 [U, S, S, 3]
    frame_index: Tensor  # int64 [M, T], rows of `frames`; an image repeats its frame T times
    filterbank: Tensor  # float32 [A, rows, bands]
    input_ids: Tensor  # int64 [R, L]; vocab_size + k is the k-th media token of the row, followed by its audio tokens
    positions: Tensor  # int64 [R, L]
    question: Tensor  # int64 [R, L]: SHARED by the row's questions, a question's number from 1, or PADDING
    media: Tensor  # int64 [R], index of the row's image or video; -1 for none
    sound: Tensor  # int64 [R], index of the row's audio clip; -1 for none
    source: Tensor  # int64 [K, 2], row and position from which a token is predicted
    target: Tensor  # int64 [K], the predicted tokens

    def to_dict(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class TrainableModel(nn.Module):
    """Towers, connector, audio projector and language model of a checkpoint."""

    def __init__(self, parts: CheckpointParts, pad_id: int | None, loading: Loading = Loading()) -> None:
        super().__init__()
        self.model_config: ModelConfig = parts.config
        loaded = {part.name: load(part, loading) for part in parts.modules()}
        self.vision, self.connector = loaded["vision tower"], loaded["connector"]
        self.audio = loaded.get("audio tower")  # None if the checkpoint has none
        self.decoder: nn.Module = loaded["language model"]  # later perhaps wrapped by peft
        for module in self.decoder.modules():
            if isinstance(module, decoder_module.Attention):
                module.fused = True
        # With ZeRO 3 and FSDP, all processes gather a layer's weights together: each must run all layers, whatever its batch.
        self.same_layers = loading.shared
        self.pad_id = -1 if pad_id is None else pad_id  # literal pad tokens are masked, as in the reference

    @property
    def language_model(self) -> Decoder:
        """The decoder, without peft's wrapper."""
        decoder: Any = self.decoder
        decoder = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
        assert isinstance(decoder, Decoder)
        return decoder

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Recompute layers in the backward pass instead of keeping their activations; called by the Trainer."""
        kinds = (
            vision_module.Layer,
            audio_module.Layer,
            connector_module.RegStage,
            decoder_module.Attention,
            decoder_module.Mlp,
        )
        apply_activation_checkpointing(self, check_fn=lambda module: isinstance(module, kinds))

    def media_tokens(self, frames: Tensor, frame_index: Tensor) -> Tensor:
        """uint8 [U, S, S, 3], int64 [M, T] -> [M, N, D]."""
        maps = self.connector.spatial(self.vision(frames))  # [U, D, g, g]
        is_image = (frame_index == frame_index[:, :1]).all(1)
        if self.same_layers or not is_image.any():
            return self._temporal(maps, frame_index)
        # An image repeats one frame: only the distinct time steps are computed (frame_plan.py).
        config = self.model_config
        short, steps = plan_time_steps([0] * config.num_frames, config.connector_padding)
        image_index = frame_index[is_image][:, :1].expand(-1, len(short))
        images = self._temporal(maps, image_index).unflatten(1, (-1, config.tokens_per_step))
        tokens = images.new_zeros(len(frame_index), config.media_tokens, images.shape[-1])
        tokens = tokens.index_put((is_image.nonzero()[:, 0],), images[:, torch.from_numpy(steps)].flatten(1, 2))
        if is_image.all():
            return tokens
        return tokens.index_put(((~is_image).nonzero()[:, 0],), self._temporal(maps, frame_index[~is_image]))

    def _temporal(self, maps: Tensor, frame_index: Tensor) -> Tensor:
        volume = maps[frame_index].transpose(1, 2)  # [M, T, D, g, g] -> [M, D, T, g, g]
        return self.connector.temporal(volume).flatten(1, 2)

    def forward(
        self,
        frames: Tensor,
        frame_index: Tensor,
        filterbank: Tensor,
        input_ids: Tensor,
        positions: Tensor,
        question: Tensor,
        media: Tensor,
        sound: Tensor,
        source: Tensor,
        target: Tensor,
    ) -> dict[str, Tensor]:
        """Mean cross-entropy over the predicted tokens; shapes as in `Batch`."""
        language = self.model_config.language
        first_media, first_audio = language.vocab_size, language.vocab_size + self.model_config.media_tokens
        embeds = self.language_model.embed(input_ids.clamp(max=language.vocab_size - 1))
        if self.same_layers:
            embeds = embeds + self._unused_layers(frame_index, filterbank).to(embeds.dtype)
        if len(frame_index):
            tokens = self.media_tokens(frames, frame_index)
            embeds = _fill(
                embeds, tokens, media, input_ids - first_media, (input_ids >= first_media) & (input_ids < first_audio)
            )
        if len(filterbank):
            assert self.audio is not None  # data/ refuses audio for a checkpoint without an audio tower
            embeds = _fill(embeds, self.audio(filterbank), sound, input_ids - first_audio, input_ids >= first_audio)
        lacks_media = not len(frame_index) or (self.audio is not None and not len(filterbank))
        if lacks_media and self.training and not self.same_layers:
            # Distributed training needs a gradient for every parameter in every process, whatever its batch.
            unused = sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)
            embeds = embeds + 0.0 * unused
        past = embeds.new_zeros(language.layers, 2, len(input_ids), language.kv_heads, 0, language.head_dim)
        hidden, _ = self.language_model.hidden_states(embeds, positions, self._bias(input_ids, question, embeds), past)
        predicting = self.language_model.model.norm(hidden[source[:, 0], source[:, 1]])
        loss = functional.cross_entropy(self.language_model.lm_head(predicting).float(), target)
        return {"loss": loss}

    def _unused_layers(self, frame_index: Tensor, filterbank: Tensor) -> Tensor:
        """A zero that depends on the layers that a batch without frames or audio does not use."""
        config, zero = self.model_config, frame_index.new_zeros(()).float()
        if not len(frame_index):
            side = config.pixels.size
            black = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=frame_index.device)
            zero = zero + 0.0 * self.media_tokens(black, frame_index.new_zeros(1, config.num_frames)).sum().float()
        if self.audio is not None and config.audio is not None and not len(filterbank):
            silent = filterbank.new_zeros(1, config.audio.rows, config.audio.bins)
            zero = zero + 0.0 * self.audio(silent).sum().float()
        return zero

    def _bias(self, input_ids: Tensor, question: Tensor, embeds: Tensor) -> Tensor:
        """The attention bias [R, 1, L, L]: 0 where a position may attend, the type's minimum elsewhere."""
        key, query = question[:, None, :], question[:, :, None]
        allowed = (key == SHARED) | (key == query)
        allowed &= torch.ones_like(allowed[0]).tril() & (input_ids != self.pad_id)[:, None, :]
        bias = torch.zeros(allowed.shape, dtype=embeds.dtype, device=embeds.device)
        return bias.masked_fill(~allowed, torch.finfo(embeds.dtype).min)[:, None]


def _fill(embeds: Tensor, tokens: Tensor, media: Tensor, place: Tensor, where: Tensor) -> Tensor:
    """Embeddings [R, L, D] in which the positions of the mask `where` [R, L] are replaced by token `place` [R, L] of the row's
    media, from `tokens` [M, N, D]."""
    row = media[:, None].expand_as(place)[where]
    return embeds.masked_scatter(where[..., None], tokens[row, place[where]].to(embeds.dtype))
