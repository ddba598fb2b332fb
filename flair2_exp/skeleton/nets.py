"""The network: what stands in conf/model/my_net.yaml under `_target_`.

Any `torch.nn.Module` will do. Of `bands`, `classes`, `patch_size`, `series_size`, `series_bands`,
`metadata_values`, `pretrained` and `spec` it is given what its constructor has arguments for; all
other arguments are its options, `model.options.*`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class MyNet(nn.Module):
    """Residual blocks on the aerial patch at a quarter of its resolution.

    Args:
        bands: Aerial bands.
        classes: Classes.
        width: Channels of the blocks; a multiple of 8.
        blocks: Their number; the dilation doubles from one to the next.
    """

    def __init__(self, bands: int, classes: int, *, width: int = 48, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(bands, width, 4, stride=4), nn.GroupNorm(8, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=2**number, dilation=2**number),
                nn.GroupNorm(8, width),
                nn.ReLU(),
                nn.Conv2d(width, width, 1),
            )
            for number in range(blocks)
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, classes, H, W) of an image (B, bands, H, W), scaled to 0..1."""
        x = functional.relu(self.stem(image))
        for block in self.blocks:
            x = x + block(x)
        return functional.interpolate(
            self.head(x), size=image.shape[2:], mode="bilinear", align_corners=False
        )
