"""A loss, written from the page "Choosing a recipe" alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Hinge(nn.Module):
    """Cross-entropy that leaves pixels alone whose probability is above a bound."""

    def __init__(self, weights: list[float], bound: float = 0.9) -> None:
        super().__init__()
        self.weights = weights
        self.bound = bound

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        weights = torch.tensor(self.weights, device=logits.device)
        costs = functional.cross_entropy(logits, target, weights, reduction="none")
        probability = logits.softmax(1).gather(1, target[:, None]).squeeze(1)
        kept = (probability < self.bound) & (weights[target] > 0)
        return (costs * kept).sum() / kept.sum().clamp_min(1)
