"""Training a tower alone: linear heads say of every patch what is there, and the tower learns with them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from videollama_core.engines.torch_device import cpu_has_bfloat16

RATE = 1e-3


class TowerTraining:
    """A tower whose features are C wide, and its heads, of so many classes each.

    Args:
        steps: of the whole training, which the learning rate's schedule is laid over.
    """

    def __init__(self, tower: nn.Module, width: int, classes: Sequence[int], steps: int) -> None:
        self._tower, self._classes = tower, list(classes)
        self._heads = nn.Linear(width, sum(classes))
        self._parameters = [*tower.parameters(), *self._heads.parameters()]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=RATE, weight_decay=0.02, betas=(0.9, 0.98))
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, RATE, total_steps=steps, pct_start=0.1)

    def step(
        self, inputs: Tensor, labels: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Sequence[Tensor], float]:
        """One update by the sum of the heads' losses.

        Args:
            labels: int64 [B, P, heads].
            loss_of: (scores [B, P, classes], labels [B, P]) of a head.
        Returns: each head's scores, and the loss.
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
            features = self._tower(inputs)
        scores = self._heads(features.float()).split(self._classes, -1)
        loss = sum((loss_of(each, labels[..., k]) for k, each in enumerate(scores)), torch.zeros(()))
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        return scores, loss.item()
