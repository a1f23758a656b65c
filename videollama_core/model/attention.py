"""The parts of attention that both towers share: the projections, and the split into heads."""

from torch import Tensor, nn


class Heads(nn.Module):
    """The four projections of multi-head attention, C = heads * head_dim; the scores are up to each tower."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, P, C] -> query, key and value [B, heads, P, head_dim]."""
        return self._to_heads(self.q_proj(x)), self._to_heads(self.k_proj(x)), self._to_heads(self.v_proj(x))

    def join(self, weights: Tensor, value: Tensor) -> Tensor:
        """Weights [B, heads, P, P] and value [B, heads, P, head_dim] -> [B, P, C]."""
        return self.out_proj((weights @ value).transpose(1, 2).flatten(2))

    def _to_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
