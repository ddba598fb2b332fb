"""Batch normalisation where a batch has one value per channel, which has no variance.

That is a batch of one patch whose map is one pixel: the last of an epoch, or each one where batches
hold one patch of 32 pixels. torch refuses it in the middle of a training; here such a batch is
normalised by the running statistics, as in evaluation, and leaves them as they are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def tolerate_single_values(network: nn.Module) -> None:
    """Let every batch normalisation of a network train on one value per channel."""
    for module in network.modules():
        if isinstance(module, _NORMS) and module.track_running_stats:
            _ByRunningStatistics(module)


class _ByRunningStatistics:
    """The hooks of one normalisation."""

    def __init__(self, norm: nn.Module) -> None:
        self._evaluating = False
        norm.register_forward_pre_hook(self._before)
        norm.register_forward_hook(self._after, always_call=True)

    def _before(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0]
        if norm.training and values.numel() == values.shape[1]:
            norm.training, self._evaluating = False, True

    def _after(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if self._evaluating:
            norm.training, self._evaluating = True, False
