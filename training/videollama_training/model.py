"""The whole model as one trainable module: media and token ids in, loss out.

Questions about the same media share its tokens: they lie behind one another in a row, each blind to the others, at the
positions that it would have alone. That is exact, and the tower runs once for all of them. R rows, L positions of a row,
M seen media, T frames of each, U frames in all, A sounds, K predicted tokens.
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
    """What `Collator` makes of some samples."""

    frames: Tensor  # uint8 [U, S, S, 3]
    frame_index: Tensor  # int64 [M, T], rows of `frames`; an image names its one frame T times
    filterbank: Tensor  # float32 [A, rows, bands]
    input_ids: Tensor  # int64 [R, L]; vocab_size + k is what the row sees at k, and behind all of that its audio
    positions: Tensor  # int64 [R, L]
    question: Tensor  # int64 [R, L]: SHARED by the row's questions, the number of one from 1, or PADDING
    media: Tensor  # int64 [R], which seen media the row is about; -1 for none
    sound: Tensor  # int64 [R], which sound it is about; -1 for none
    source: Tensor  # int64 [K, 2], row and position from which a token is predicted
    target: Tensor  # int64 [K], the token

    def to_dict(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class TrainableModel(nn.Module):
    """Towers, connector, audio projector and language model of a checkpoint."""

    def __init__(self, parts: CheckpointParts, pad_id: int | None, loading: Loading = Loading()) -> None:
        super().__init__()
        self.model_config: ModelConfig = parts.config
        loaded = {part.name: load(part, loading) for part in parts.modules()}
        self.vision, self.connector = loaded["vision tower"], loaded["connector"]
        self.audio = loaded.get("audio tower")  # None where the checkpoint has none
        self.decoder: nn.Module = loaded["language model"]  # or peft's wrapper around it
        for module in self.decoder.modules():
            if isinstance(module, decoder_module.Attention):
                module.fused = True
        # ZeRO 3 and FSDP fetch a layer's weights together: every process runs the same layers, whatever its batch holds.
        self.same_layers = loading.shared
        self.pad_id = -1 if pad_id is None else pad_id  # literal pad tokens are masked, as in the reference

    @property
    def language_model(self) -> Decoder:
        decoder: Any = self.decoder
        decoder = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
        assert isinstance(decoder, Decoder)
        return decoder

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Compute layers again in the backward pass instead of keeping what they made (the Trainer asks for it)."""
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
        # An image is one frame at every time: only the distinct time steps are computed (frame_plan.py).
        config = self.model_config
        short, steps = plan_time_steps([0] * config.num_frames, config.connector_padding)
        image_index = frame_index[is_image][:, :1].expand(-1, len(short))
        images = self._temporal(maps, image_index).unflatten(1, (-1, config.tokens_per_step))
        found = images.new_zeros(len(frame_index), config.media_tokens, images.shape[-1])
        found = found.index_put((is_image.nonzero()[:, 0],), images[:, torch.from_numpy(steps)].flatten(1, 2))
        if is_image.all():
            return found
        return found.index_put(((~is_image).nonzero()[:, 0],), self._temporal(maps, frame_index[~is_image]))

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
        """Cross-entropy, the mean over the predicted tokens; shapes as in `Batch`."""
        language = self.model_config.language
        first_seen, first_heard = language.vocab_size, language.vocab_size + self.model_config.media_tokens
        embeds = self.language_model.embed(input_ids.clamp(max=language.vocab_size - 1))
        if self.same_layers:
            embeds = embeds + self._unused_layers(frame_index, filterbank).to(embeds.dtype)
        if len(frame_index):
            seen = self.media_tokens(frames, frame_index)
            embeds = _fill(
                embeds, seen, media, input_ids - first_seen, (input_ids >= first_seen) & (input_ids < first_heard)
            )
        if len(filterbank):
            assert self.audio is not None  # data.py refuses audio for a checkpoint without an audio tower
            embeds = _fill(embeds, self.audio(filterbank), sound, input_ids - first_heard, input_ids >= first_heard)
        lacks = not len(frame_index) or (self.audio is not None and not len(filterbank))
        if (
            lacks and self.training and not self.same_layers
        ):  # every process touches every parameter, whatever its batch holds
            unused = sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)
            embeds = embeds + 0.0 * unused
        past = embeds.new_zeros(language.layers, 2, len(input_ids), language.kv_heads, 0, language.head_dim)
        hidden, _ = self.language_model.hidden_states(embeds, positions, self._bias(input_ids, question, embeds), past)
        wanted = self.language_model.model.norm(hidden[source[:, 0], source[:, 1]])
        loss = functional.cross_entropy(self.language_model.lm_head(wanted).float(), target)
        return {"loss": loss}

    def _unused_layers(self, frame_index: Tensor, filterbank: Tensor) -> Tensor:
        """0, by way of the layers that a batch without pictures or audio leaves out."""
        config, found = self.model_config, frame_index.new_zeros(()).float()
        if not len(frame_index):
            side = config.pixels.size
            black = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=frame_index.device)
            found = found + 0.0 * self.media_tokens(black, frame_index.new_zeros(1, config.num_frames)).sum().float()
        if self.audio is not None and config.audio is not None and not len(filterbank):
            silent = filterbank.new_zeros(1, config.audio.rows, config.audio.bins)
            found = found + 0.0 * self.audio(silent).sum().float()
        return found

    def _bias(self, input_ids: Tensor, question: Tensor, embeds: Tensor) -> Tensor:
        """[R, 1, L, L]: 0 where a position may look, a huge negative number elsewhere."""
        key, query = question[:, None, :], question[:, :, None]
        allowed = (key == SHARED) | (key == query)
        allowed &= torch.ones_like(allowed[0]).tril() & (input_ids != self.pad_id)[:, None, :]
        bias = torch.zeros(allowed.shape, dtype=embeds.dtype, device=embeds.device)
        return bias.masked_fill(~allowed, torch.finfo(embeds.dtype).min)[:, None]


def _fill(embeds: Tensor, tokens: Tensor, media: Tensor, place: Tensor, where: Tensor) -> Tensor:
    """Embeddings [R, L, D] with, `where` [R, L] says so, token `place` [R, L] of the row's media, of `tokens` [M, N, D]."""
    row = media[:, None].expand_as(place)[where]
    return embeds.masked_scatter(where[..., None], tokens[row, place[where]].to(embeds.dtype))
