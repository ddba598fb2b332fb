"""A metric, written from the page "Choosing a recipe" alone."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Wrong(Metric):
    """The share of pixels that are wrong, among those that count."""

    higher_is_better = False

    def __init__(self, num_classes: int, scale: float = 1.0) -> None:
        super().__init__()
        self.num_classes, self.scale = num_classes, scale
        self.add_state("wrong", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("all", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.wrong += (preds != target).sum()
        self.all += target.numel()

    def compute(self) -> Tensor:
        return self.scale * self.wrong / self.all
