"""The audio tower (BEATs) and its projector: filterbanks -> audio tokens.

Parameter names are the published ones below `model.audio_tower.` and `model.mm_projector_a.`, except that the position
convolution's weight is computed from its stored direction and length (checkpoint/parts.py), and that the table of relative
positions, which all layers share, exists once. B: audio clips, R and F: rows and bands of a filterbank, P: patches,
C: width, D: width of the language model.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from videollama_core.model.attention import Heads
from videollama_core.model.config import AudioConfig

PREFIX = "model.audio_tower."
PROJECTOR_PREFIX = "model.mm_projector_a."
MEAN, DEVIATION = 15.41663, 2 * 6.55582  # of the filterbanks that BEATs was trained on
EPS = 1e-5
BUCKETS, MAX_DISTANCE = 320, 800  # of relative positions
PATCH = 16  # rows and bands
KERNEL, GROUPS = 128, 16  # of the position convolution


class Attention(Heads):
    """Attention whose relative position bias is scaled by a gate per query."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.grep_linear = nn.Linear(self.head_dim, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, P, C], bias [heads, P, P] -> [B, P, C]."""
        query, key, value = self.split(x)
        gates = torch.sigmoid(self.grep_linear(query).unflatten(-1, (2, 4)).sum(-1))  # [B, heads, P, 2]
        gate = gates[..., :1] * (gates[..., 1:] * self.grep_a - 1.0) + 2.0
        scores = query @ key.transpose(-1, -2) * self.head_dim**-0.5 + gate * bias
        return self.join(torch.softmax(scores, dim=-1), value)


class Layer(nn.Module):
    """A post-norm transformer layer whose residual branch is scaled up (DeepNorm)."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.width, eps=EPS)
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=EPS)
        self.scale = (2 * config.layers) ** 0.25

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(self.scale * x + self.self_attn(x, bias))
        return self.final_layer_norm(self.scale * x + self.fc2(functional.gelu(self.fc1(x))))


class Encoder(nn.Module):
    """The transformer of the audio tower: x [B, P, C] -> [B, P, C]."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.pos_conv = nn.ModuleList(
            [nn.Conv1d(config.width, config.width, KERNEL, padding=KERNEL // 2, groups=GROUPS)]
        )
        self.layer_norm = nn.LayerNorm(config.width, eps=EPS)
        self.relative_attention_bias = nn.Embedding(BUCKETS, config.heads)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [B, P, C] -> input of the first layer [B, P, C], and the bias of all layers [heads, P, P]."""
        # An even kernel yields one position too many.
        near = self.pos_conv[0](x.transpose(1, 2))[..., :-1].transpose(1, 2)
        x = self.layer_norm(x + functional.gelu(near))
        place = torch.arange(x.shape[1], device=x.device)
        bias = self.relative_attention_bias(bucket_of(place[None, :] - place[:, None])).permute(2, 0, 1)
        return x, bias

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self.embed(x)
        for layer in self.layers:
            x = layer(x, bias)
        return x


def bucket_of(offset: Tensor) -> Tensor:
    """int64 offsets (key minus query) -> buckets: one half per sign, exact for near offsets, logarithmic for far ones."""
    half, exact = BUCKETS // 2, BUCKETS // 4
    distance = offset.abs()
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    bucket = torch.where(distance < exact, distance, (exact + far.long()).clamp(max=half - 1))
    return bucket + half * (offset > 0).long()


class AudioTower(nn.Module):
    """filterbank [B, R, F] -> audio features [B, P, C]; patches are ordered by time, then by band."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(1, config.patch_width, PATCH, stride=PATCH, bias=False)
        self.layer_norm = nn.LayerNorm(config.patch_width, eps=EPS)
        self.post_extract_proj = nn.Linear(config.patch_width, config.width)
        self.encoder = Encoder(config)

    def embed(self, filterbank: Tensor) -> Tensor:
        """What the encoder is given [B, P, C]."""
        x = ((filterbank - MEAN) / DEVIATION).unsqueeze(1).to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)  # [B, E, R/16, F/16] -> [B, P, E]
        return self.post_extract_proj(self.layer_norm(patches))

    def forward(self, filterbank: Tensor) -> Tensor:
        return self.encoder(self.embed(filterbank))


class AudioEncoder(nn.Module):
    """filterbank [B, R, F] -> audio tokens [B, P, D]: tower and projector."""

    def __init__(self, config: AudioConfig, language_width: int) -> None:
        super().__init__()
        self.tower = AudioTower(config)
        self.projector = nn.Sequential(
            nn.Linear(config.width, language_width), nn.GELU(), nn.Linear(language_width, language_width)
        )

    def forward(self, filterbank: Tensor) -> Tensor:
        return self.projector(self.tower(filterbank))
