"""Losses of one head, over logits (B, C, H, W) and class indices (B, H, W).

All are weighted means over pixels: divided by the sum of the targets' class weights, as PyTorch's
weighted cross-entropy and the baseline do (flair2 §2). Pixels whose class weighs nothing are left
out of every term; a batch of such pixels alone (a patch wholly of "other") costs 0 instead of
PyTorch's NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

PLOWED_LAND = "plowed land"
_IGNORED = -100
"""Stands in a target for the classes that weigh nothing: their pixels are left out."""


def class_weights(
    names: Sequence[str], weights: Mapping[str, float], *, without: Sequence[str] = ()
) -> list[float]:
    """The weight of each class: 1 unless named in `weights`, 0 for those in `without`."""
    return [0.0 if name in without else float(weights.get(name, 1.0)) for name in names]


class PixelLoss(nn.Module):
    """Cross-entropy or focal loss, class-weighted, with optional label smoothing and soft Dice.

    The focal factor (1 - p)^gamma is Lin et al. (2017), equation 4, on the softmax probability of
    the target. Dice is that of segmentation_models_pytorch, over the classes that weigh anything,
    added with weight 1.

    Args:
        weights: Weight of each class, C numbers from 0 up.
        label_smoothing: Share of the target spread over all classes, 0..1.
        gamma: Focusing exponent; 0 is cross-entropy.
        dice: Whether the Dice loss is added.
    """

    def __init__(
        self,
        weights: Sequence[float],
        *,
        label_smoothing: float = 0.0,
        gamma: float = 0.0,
        dice: bool = False,
    ) -> None:
        super().__init__()
        # Not persistent: the weights are an option of the run, not something that it learns.
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.weights: Tensor
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        self.dice = _dice(weights) if dice else None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar in float32 (in float64 where the logits are).

        Args:
            logits: (B, C, H, W), any floating type.
            target: (B, H, W) int64, 0..C-1.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = self.weights.to(logits.dtype)  # a run in bf16-true or 64-true converts buffers
        weight = weights[target]
        # Weighing its cross-entropy by 0 is not enough: smoothing spreads over the other classes.
        counted = target.masked_fill(weight == 0, _IGNORED)
        # One row a pixel: PyTorch's two-dimensional kernel has no deterministic form on GPUs.
        pixels = logits.movedim(1, -1).flatten(0, -2)
        costs = functional.cross_entropy(
            pixels,
            counted.flatten(),
            weights,
            ignore_index=_IGNORED,
            reduction="none" if self.gamma else "sum",
            label_smoothing=self.label_smoothing,
        )
        if self.gamma:
            costs = (costs * self._focus(pixels, target.flatten())).sum()
        loss = costs / weight.sum().clamp_min(torch.finfo(costs.dtype).tiny)
        return loss if self.dice is None else loss + self.dice(logits, counted)

    def _focus(self, pixels: Tensor, truth: Tensor) -> Tensor:
        """(1 - p)^gamma of each pixel, p the probability of its class."""
        probability = pixels.softmax(dim=1).gather(1, truth[:, None]).squeeze(1)
        # A power below 1 has no slope at 0: a pixel beyond doubt would make the gradient NaN.
        return (1 - probability).clamp_min(torch.finfo(pixels.dtype).eps) ** self.gamma


def _dice(weights: Sequence[float]) -> nn.Module:
    from segmentation_models_pytorch.losses import DiceLoss

    counted = [index for index, weight in enumerate(weights) if weight > 0]
    dice: nn.Module = DiceLoss(mode="multiclass", classes=counted, ignore_index=_IGNORED)
    return dice
