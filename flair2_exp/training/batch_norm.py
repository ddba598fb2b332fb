"""Batch normalisation over the batches of all devices (`trainer.sync_batchnorm`)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn


class SharedBatchNorms(TorchSyncBatchNorm):
    """Lightning's own way, which is torch's `SyncBatchNorm`, and the same on processors."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the network with every batch norm replaced."""
        model = super().apply(model)
        for module in model.modules():
            if type(module) is nn.SyncBatchNorm:
                module.__class__ = SharedBatchNorm
        return model


class SharedBatchNorm(nn.SyncBatchNorm):
    """torch's `SyncBatchNorm`, which refuses to train on a processor, and what it does, there."""

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised maps (B, C, ...), in training by mean and variance over all devices."""
        shared = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if not (self.training and shared and input.device.type == "cpu"):
            return super().forward(input)
        values = input.float()
        axes = [axis for axis in range(values.dim()) if axis != 1]
        shape = [1, -1, *[1] * (values.dim() - 2)]
        local = values.new_full((1,), values.numel() / values.shape[1])
        total = _sum_of_all(torch.cat([values.sum(axes), local]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = values - mean.view(shape)
        variance = _sum_of_all(centred.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None:
            self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch (C,)."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(value.to(running.dtype), share)


class _SumOfAll(torch.autograd.Function):
    """Sums a tensor over all processes; the gradient is summed likewise."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOfAll.forward(ctx, gradient.contiguous())


def _sum_of_all(values: Tensor) -> Tensor:
    total: Tensor = _SumOfAll.apply(values)
    return total
