"""Losses of one head, over logits (B, C, H, W) and class indices (B, H, W).

All are weighted means over pixels: divided by the sum of the targets' class weights, as PyTorch's
weighted cross-entropy and the baseline do (flair2 §2). A batch in which every pixel weighs nothing
(a patch wholly of "other") costs 0 instead of PyTorch's NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

PLOWED_LAND = "plowed land"


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
        """The loss, a scalar in float32.

        Args:
            logits: (B, C, H, W), any floating type.
            target: (B, H, W) int64, 0..C-1.
        """
        # One row a pixel: PyTorch's two-dimensional kernel has no deterministic form on GPUs.
        pixels = logits.float().movedim(1, -1).flatten(0, -2)
        truth = target.flatten()
        total = self.weights[truth].sum()
        if self.gamma:
            each = functional.cross_entropy(
                pixels,
                truth,
                self.weights,
                reduction="none",
                label_smoothing=self.label_smoothing,
            )
            probability = pixels.softmax(dim=1).gather(1, truth[:, None]).squeeze(1)
            summed = ((1 - probability) ** self.gamma * each).sum()
        else:
            summed = functional.cross_entropy(
                pixels,
                truth,
                self.weights,
                reduction="sum",
                label_smoothing=self.label_smoothing,
            )
        loss = summed / total.clamp_min(torch.finfo(summed.dtype).tiny)
        return loss if self.dice is None else loss + self.dice(logits.float(), target)


def _dice(weights: Sequence[float]) -> nn.Module:
    from segmentation_models_pytorch.losses import DiceLoss

    counted = [index for index, weight in enumerate(weights) if weight > 0]
    ignored = [index for index, weight in enumerate(weights) if weight == 0]
    # smp leaves out one class's pixels at most: the last of those without weight, "other".
    dice: nn.Module = DiceLoss(
        mode="multiclass", classes=counted, ignore_index=ignored[-1] if ignored else None
    )
    return dice
