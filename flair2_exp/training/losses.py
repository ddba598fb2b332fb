"""Losses of one head, over logits (B, C, H, W) and class indices (B, H, W).

All are weighted means over pixels: divided by the sum of the targets' class weights, as PyTorch's
weighted cross-entropy and the baseline do (flair2 §2). Pixels whose class weighs nothing are left
out of every term; a batch of such pixels alone (a patch wholly of "other") costs 0 instead of
PyTorch's NaN.

`loss._target_` names a class of this module, or any other `torch.nn.Module` whose `forward` takes
logits and class indices and returns a scalar.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flair2_exp.config.training import LossConfig
from flair2_exp.errors import ConfigError, first_line
from flair2_exp.registry import construct, written

PLOWED_LAND = "plowed land"
_IGNORED = -100
"""Stands in a target for the classes that weigh nothing: their pixels are left out."""


def build_loss(options: LossConfig, names: Sequence[str], head: str) -> nn.Module:
    """Build the loss of a head.

    Its constructor is given, by the names of its arguments, `weights` (of each class, 0 for those
    that do not count), `names` (of the classes), `options` (the `LossConfig`), `head`, and
    `ignore_index` (of the one class that does not count, where the others count alike); its other
    arguments are `loss.options`, which may also set `ignore_index`.

    Args:
        options: Of the loss.
        names: Of all classes, in the order of their indices.
        head: `aerial` or `satellite`.

    Raises:
        ConfigError: `loss._target_` is not a module, or does not take its options.
    """
    weights = class_weights(options, names, head)
    given = {"weights": weights, "names": list(names), "options": options, "head": head}
    uncounted = [index for index, weight in enumerate(weights) if weight == 0]
    if len(uncounted) == 1 and "ignore_index" not in options.options:
        given["ignore_index"] = uncounted[0]
    return construct(
        nn.Module,
        options._target_,
        "loss.options",
        given=given,
        options=options.options,
        target="loss._target_",
    )


def require_loss(loss: nn.Module, classes: int) -> None:
    """Refuse what is built like a loss and is none: it is tried on a few pixels.

    Raises:
        ConfigError: It does not take logits (B, C, H, W) and class indices (B, H, W), or does not
            return a scalar that depends on the logits.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 8, 8, generator=generator).requires_grad_()
    target = torch.randint(0, classes, (2, 8, 8), generator=generator)
    expected = (
        f"Expected a scalar of logits (batch, {classes}, height, width) and class indices "
        "(batch, height, width)."
    )
    try:
        value = loss(logits, target)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = first_line(error)
        raise ConfigError(f"the loss {written(type(loss))}: {reason}\n{expected}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        what = (
            f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)
        )
        raise ConfigError(f"the loss {written(type(loss))} returned {what}.\n{expected}")


def class_weights(options: LossConfig, names: Sequence[str], head: str) -> list[float]:
    """Return the weight of each class: 1 unless named in the options."""
    weights = dict(options.class_weights)
    if head == "satellite" and options.satellite_class_weights == "reference":
        weights[PLOWED_LAND] = 0.0
    return [float(weights.get(name, 1.0)) for name in names]


class PixelLoss(nn.Module):
    """What our losses are: their `forward` takes logits and targets and returns a scalar.

    Args:
        weights: Weight of each class, C numbers from 0 up.
        options: Of the loss; a class ignores those that it has no use for.
    """

    def __init__(self, weights: Sequence[float], options: LossConfig) -> None:
        super().__init__()
        # Not persistent: the weights are an option of the run, not something that it learns.
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.weights: Tensor
        self.options = options


class CrossEntropy(PixelLoss):
    """Cross-entropy, with `label_smoothing`."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar in float32 (in float64 where the logits are).

        Args:
            logits: (B, C, H, W), any floating type.
            target: (B, H, W) int64, 0..C-1.
        """
        logits = _at_least_float32(logits)
        weights = self.weights.to(logits.dtype)  # a run in bf16-true or 64-true converts buffers
        # One row per pixel: PyTorch's two-dimensional kernel has no deterministic form on GPUs.
        pixels = logits.movedim(1, -1).flatten(0, -2)
        total = self._total(pixels, target.flatten(), weights)
        return total / weights[target].sum().clamp_min(torch.finfo(total.dtype).tiny)

    def _total(self, pixels: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        """Return the summed costs of pixels (N, C) whose classes are truth (N,)."""
        return self._costs(pixels, truth, weights, "sum")

    def _costs(self, pixels: Tensor, truth: Tensor, weights: Tensor, reduction: str) -> Tensor:
        return functional.cross_entropy(
            pixels,
            _counted(truth, weights),
            weights,
            ignore_index=_IGNORED,
            reduction=reduction,
            label_smoothing=self.options.label_smoothing,
        )


class Focal(CrossEntropy):
    """Cross-entropy of each pixel times (1 - p)^`gamma`, p the softmax probability of its class.

    Lin et al. (2017), equation 4.
    """

    def _total(self, pixels: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
        probability = pixels.softmax(dim=1).gather(1, truth[:, None]).squeeze(1)
        # A power below 1 has no slope at 0: a pixel beyond doubt would make the gradient NaN.
        doubt = (1 - probability).clamp_min(torch.finfo(pixels.dtype).eps)
        return (self._costs(pixels, truth, weights, "none") * doubt**self.options.gamma).sum()


class DiceCrossEntropy(CrossEntropy):
    """Cross-entropy plus soft Dice over the batch, of the classes that weigh anything.

    Dice is that of segmentation_models_pytorch.
    """

    def __init__(self, weights: Sequence[float], options: LossConfig) -> None:
        super().__init__(weights, options)
        from segmentation_models_pytorch.losses import DiceLoss

        counted = [index for index, weight in enumerate(weights) if weight > 0]
        self.dice = DiceLoss(mode="multiclass", classes=counted, ignore_index=_IGNORED)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the sum of both, as `CrossEntropy.forward`."""
        loss: Tensor = super().forward(logits, target)
        dice: Tensor = self.dice(_at_least_float32(logits), _counted(target, self.weights))
        return loss + dice


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _counted(target: Tensor, weights: Tensor) -> Tensor:
    """Leave pixels of classes that weigh nothing out of a target.

    Weighing their cross-entropy by 0 is not enough: smoothing spreads over the other classes.
    """
    return target.masked_fill(weights[target] == 0, _IGNORED)
