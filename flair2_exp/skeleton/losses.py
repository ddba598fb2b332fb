"""The loss: what stands in conf/loss/my_loss.yaml under `_target_`.

Any `torch.nn.Module` will do. Of `weights`, `names`, `head` and `options` it is given what its
constructor has arguments for; all other arguments are its options, `loss.options.*`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class MyLoss(nn.Module):
    """Cross-entropy in which pixels at borders between classes weigh more.

    Args:
        weights: Weight of each class; 0 for classes that do not count.
        border: What a border pixel weighs more, as a multiple.
    """

    def __init__(self, weights: list[float], *, border: float = 2.0) -> None:
        super().__init__()
        # Not persistent: an option of the run, not something that it learns.
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.weights: Tensor
        self.border = border

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C, H, W) and class indices (B, H, W)."""
        weights = self.weights.to(logits.dtype)
        costs = functional.cross_entropy(logits, target, weights, reduction="none")
        local = target[:, None].to(logits.dtype)
        highest = functional.max_pool2d(local, 3, stride=1, padding=1)
        lowest = -functional.max_pool2d(-local, 3, stride=1, padding=1)
        share = weights[target] * (1 + self.border * (highest != lowest).squeeze(1))
        # A batch of pixels that do not count costs nothing, rather than NaN.
        factor = share / weights[target].clamp_min(torch.finfo(weights.dtype).tiny)
        return (costs * factor).sum() / share.sum().clamp_min(torch.finfo(weights.dtype).tiny)
