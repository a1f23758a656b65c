"""Trains a tower by itself, with linear heads that classify every patch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from videollama_core.engines.torch_device import cpu_has_bfloat16

RATE = 1e-3


class TowerTraining:
    """A tower, its heads and their optimizer.

    Args:
        width: C, the width of the tower's features.
        classes: number of classes of each head.
        steps: length of the whole training, for the learning rate schedule.
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
        """Update the tower and heads once, with the sum of the heads' losses.

        Args:
            labels: int64 [B, P, heads].
            loss_of: loss of one head, from its scores [B, P, classes] and labels [B, P].
        Returns: scores of each head, and the loss.
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
            features = self._tower(inputs)
        scores = self._heads(features.float()).split(self._classes, -1)
        loss = sum((loss_of(logits, labels[..., k]) for k, logits in enumerate(scores)), torch.zeros(()))
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        return scores, loss.item()
