"""The convolution blocks that U-TAE is built of (Garnot and Landrieu 2021, §3.1 and §3.3)."""

from __future__ import annotations

from torch import Tensor, nn


def as_weights(x: Tensor, module: nn.Module) -> Tensor:
    """Return x in the type of a module's weights: not float32 with `bf16-true` or `64-true`."""
    return x.to(next(module.parameters()).dtype)


class ConvBlock(nn.Sequential):
    """Convolution with reflect padding, normalisation, ReLU.

    Takes and returns (N, channels, H, W); a stride of 2 halves H and W.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        groups: Groups of a GroupNorm; 0 for a BatchNorm.
        kernel: Size of the convolution's kernel.
        stride: Its stride.
    """

    def __init__(
        self, inputs: int, outputs: int, *, groups: int = 0, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=1, padding_mode="reflect"
        )
        self.norm = nn.GroupNorm(groups, outputs) if groups else nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)


class PointBlock(nn.Sequential):
    """1×1 convolution, BatchNorm, ReLU: (N, channels, H, W) to the same size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)


class UpBlock(nn.Sequential):
    """Transposed 4×4 convolution that doubles H and W (zero padding), BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)


class Residual(nn.Module):
    """A 3×3 block whose output is added to its input."""

    def __init__(self, channels: int, *, groups: int = 0) -> None:
        super().__init__()
        self.block = ConvBlock(channels, channels, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + block(x), of x's shape."""
        y: Tensor = x + self.block(x)
        return y
