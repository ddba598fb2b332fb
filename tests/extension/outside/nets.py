"""A network, written from the page "Your own network" alone."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions over the image's pixels."""

    def __init__(self, bands: int, classes: int, *, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(bands, width, 3, padding=1)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.encoder(image)))
