"""The vision tower up to the selected hidden state, for every family of `config.TOWER_FAMILIES`.

Parameter names are the published ones below `model.vision_tower.vision_tower.vision_model.`. Layers after the selected
hidden state, the last norm and SigLIP's pooling head never influence the output and do not exist here.
U: distinct frames, S: image side, P: patches (and the class token inside the tower), C: width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from videollama_core.model.attention import Heads
from videollama_core.model.config import PixelConfig, VisionConfig

PREFIX = "model.vision_tower.vision_tower.vision_model."


def activation(name: str, x: Tensor) -> Tensor:
    """Apply an activation by its name in Hugging Face configs. Raises: ValueError for an unknown name."""
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if name == "gelu_pytorch_tanh":
        return functional.gelu(x, approximate="tanh")
    if name == "gelu":
        return functional.gelu(x)
    raise ValueError(f"the activation {name!r} is unknown")


class Embeddings(nn.Module):
    """Normalized pixels [U, 3, S, S] -> patch embeddings with positions [U, P, C], the class token first."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        family = config.family
        self.class_token = family.class_token
        if family.class_token:
            self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(
            3, config.width, config.patch_size, stride=config.patch_size, bias=family.patch_bias
        )
        self.position_embedding = nn.Embedding(config.grid**2 + family.class_token, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [U, 3, S, S] -> [U, P, C], rows first
        if self.class_token:
            first = self.class_embedding.expand(patches.shape[0], 1, -1)
            patches = torch.cat([first, patches], dim=1)
        return patches + self.position_embedding.weight


class Attention(Heads):
    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        weights = torch.softmax(query @ key.transpose(-1, -2) * self.head_dim**-0.5, dim=-1)
        return self.join(weights, value)


class Mlp(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activation(self.activation, self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.self_attn = Attention(config.width, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.used_layers))


class VisionEncoder(nn.Module):
    """frames uint8 [U, S, S, 3] -> vision_features [U, P, C]; rescaling and normalization are part of the module."""

    def __init__(self, config: VisionConfig, pixels: PixelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        if config.family.pre_norm:
            self.pre_layrnorm = nn.LayerNorm(config.width, eps=config.eps)  # misspelled so in every checkpoint
        self.encoder = Encoder(config)
        self.pixels = pixels

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 [U, S, S, 3] -> float32 [U, 3, S, S], in float32 whatever the dtype of the weights."""
        # The cast comes first: TensorRT supports uint8 as a graph input only.
        channels = (frames.to(torch.float32) * self.pixels.scale).unbind(-1)
        scaled = [
            (channel - mean) / std
            for channel, mean, std in zip(channels, self.pixels.mean, self.pixels.std, strict=True)
        ]
        return torch.stack(scaled, dim=1)

    def embed(self, frames: Tensor) -> Tensor:
        """What the first layer is given [U, P, C]."""
        x = self.embeddings(self.normalise(frames).to(self.embeddings.position_embedding.weight.dtype))
        return self.pre_layrnorm(x) if self.config.family.pre_norm else x

    def patches(self, x: Tensor) -> Tensor:
        """The last layer's output without the class token."""
        return x[:, 1:] if self.config.family.class_token else x

    def forward(self, frames: Tensor) -> Tensor:
        x = self.embed(frames)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.patches(x)
