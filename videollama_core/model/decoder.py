"""The language model: Mistral, Mixtral and Qwen2 as one decoder that takes embeddings and a key-value cache.

Parameter names are the published ones. B: batch rows, S: new positions, P: cached positions (padded to the longest row),
D: width, H: key-value heads, G: query heads per key-value head, d: head dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from videollama_core.model.config import LanguageConfig

Past = Tensor | Sequence[tuple[Tensor, Tensor]]


class RmsNorm(nn.Module):
    """RMSNorm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        full = x.float()
        scaled = full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """positions int64 [B, S] -> cos and sin float32 [B, 1, S, d], for pairs (i, i + d/2)."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None].float() * (1.0 / theta**steps)  # [B, S, d/2]
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embeddings to x [B, heads, S, d]."""
    half = x.shape[-1] // 2
    rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos.to(x.dtype) + rotated * sin.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, over cached and new positions."""

    fused = False  # True: PyTorch's fused kernel, for training; the exported graphs need separate operators

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = config.kv_heads, config.head_dim
        self.groups = config.heads // config.kv_heads
        query_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, query_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_width, config.width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, S, heads*d] -> [B, heads, S, d]

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the attention output [B, S, D] and the new keys and values [B, H, S, d]."""
        length = x.shape[1]
        query = rotate(self._split(self.q_proj(x)), cos, sin)
        key = rotate(self._split(self.k_proj(x)), cos, sin)
        value = self._split(self.v_proj(x))
        if self.fused:
            keys, values = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)  # [B, H, P+S, d]
            mask = bias.to(query.dtype).clamp(min=torch.finfo(query.dtype).min)  # the cast may round to infinity
            mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
            return self.o_proj(mixed.transpose(1, 2).flatten(2)), key, value
        # The G query heads that share a key head are stacked along the positions, and cached and new positions are
        # multiplied separately, so that keys and values are never copied.
        query = query.unflatten(1, (self.kv_heads, self.groups)).flatten(2, 3)  # [B, H, G*S, d]
        scores = torch.cat([query @ past_key.transpose(-1, -2), query @ key.transpose(-1, -2)], dim=-1)
        scores = scores * self.head_dim**-0.5  # [B, H, G*S, P+S]
        scores = scores.unflatten(2, (self.groups, length)) + bias.unsqueeze(2)  # [B, H, G, S, P+S]
        weights = torch.softmax(scores.float(), dim=-1).to(x.dtype).flatten(2, 3)
        of_past, of_new = weights[..., : past_key.shape[2]], weights[..., past_key.shape[2] :]
        mixed = (
            (of_past @ past_value + of_new @ value).unflatten(2, (self.groups, length)).flatten(1, 2)
        )  # [B, H*G, S, d]
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), key, value


class Mlp(nn.Module):
    """The gated MLP (SwiGLU) of the dense models."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Expert(nn.Module):
    """The same gated MLP under Mixtral's parameter names."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.mlp_width, bias=False)
        self.w2 = nn.Linear(config.mlp_width, config.width, bias=False)
        self.w3 = nn.Linear(config.width, config.mlp_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class MixtureOfExperts(nn.Module):
    """Mixtral's sparse MLP: each expert runs on the positions for which the router chose it."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.chosen = config.experts_per_token
        self.gate = nn.Linear(config.width, config.experts, bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.experts))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        best, index = torch.topk(torch.softmax(self.gate(flat).float(), dim=-1), self.chosen, dim=-1)
        best = (best / best.sum(-1, keepdim=True)).to(x.dtype)
        mixed = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            place = torch.nonzero(index == number)
            row, choice = place[:, 0], place[:, 1]
            mixed = mixed.index_add(0, row, expert(flat[row]) * best[row, choice][:, None])
        return mixed.view_as(x)

    def dense(self, x: Tensor) -> Tensor:
        """Every expert on every position, weighted 0 where not chosen: the same values with data-independent shapes."""
        shares = torch.softmax(self.gate(x).float(), dim=-1)  # [B, S, experts]
        best, index = torch.topk(shares, self.chosen, dim=-1)
        best = best / best.sum(-1, keepdim=True)
        weights = torch.zeros_like(shares).scatter(-1, index, best).to(x.dtype)
        return torch.stack(
            [expert(x) * weights[..., number : number + 1] for number, expert in enumerate(self.experts)]
        ).sum(0)


class DecoderLayer(nn.Module):
    """A pre-norm transformer layer: attention, then an MLP or a mixture of experts."""

    input_layernorm: RmsNorm
    self_attn: Attention
    post_attention_layernorm: RmsNorm

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.width, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.width, config.eps)
        if config.experts:
            self.block_sparse_moe = MixtureOfExperts(config)
        else:
            self.mlp = Mlp(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns x [B, S, D] for the next layer, and the new keys and values [2, B, H, S, d]."""
        mixed, key, value = self.self_attn(self.input_layernorm(x), cos, sin, bias, past_key, past_value)
        x = x + mixed
        x = x + self.feed_forward(self.post_attention_layernorm(x))
        return x, torch.stack([key, value])

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.block_sparse_moe(x) if hasattr(self, "block_sparse_moe") else self.mlp(x)


class Body(nn.Module):
    """The parameters below `model.`: embedding, layers and final norm."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RmsNorm(config.width, config.eps)


class Decoder(nn.Module):
    """One step of the language model, prefill and decode alike."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, input_ids: Tensor) -> Tensor:
        """Ids int64 [B, S] -> embeddings [B, S, D]."""
        return self.model.embed_tokens(input_ids)

    def hidden_states(
        self, inputs_embeds: Tensor, positions: Tensor, bias: Tensor, past: Past
    ) -> tuple[Tensor, list[Tensor]]:
        """[B, S, D] -> the last layer's output [B, S, D] before the norm, and each layer's new keys and values.

        The other arguments are those of `forward`.
        """
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        x = inputs_embeds
        new = []
        for number, layer in enumerate(self.model.layers):
            x, of_layer = layer(x, cos, sin, bias, past[number][0], past[number][1])
            new.append(of_layer)
        return x, new

    def forward(
        self, inputs_embeds: Tensor, positions: Tensor, bias: Tensor, last: Tensor, past: Past
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            inputs_embeds: [B, S, D].
            positions: int64 [B, S].
            bias: [B, 1, S, P+S], added to the scores: 0 where position s may attend, a huge negative number elsewhere.
            last: int64 [B], the position in each row whose logits are returned.
            past: the KV cache: keys and values [B, H, P, d] per layer, or all of them as [layers, 2, B, H, P, d].
        Returns:
            logits float32 [B, vocab] and the new keys and values [layers, 2, B, H, S, d].
        """
        x, new = self.hidden_states(inputs_embeds, positions, bias, past)
        return self.head(x, last), torch.stack(new)

    def head(self, x: Tensor, last: Tensor) -> Tensor:
        """The last layer's output [B, S, D] -> logits float32 [B, vocab] of one position per row."""
        rows = torch.arange(x.shape[0], device=x.device)
        return self.lm_head(self.model.norm(x[rows, last])).float()
