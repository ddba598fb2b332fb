"""The aerial patch's metadata as a further input, added to the deepest encoder feature map."""

from __future__ import annotations

from torch import Tensor, nn

from flair2_exp.nomenclature import METADATA_VALUES


class MetadataFusion(nn.Module):
    """A multilayer perceptron of the metadata, added to a feature map.

    `rows` is the published behaviour: one value per row of the map, the same for all channels and
    columns (so that north and south of a patch are told apart, but no channels). `channels` gives
    each channel of the map a value of its own, the same everywhere in space.

    Args:
        channels: Channels of the feature map.
        height: Its rows: the patch's pixels over 32.
        fusion: `channels` or `rows`.
        dropout: Rate after the first two layers, in training.
    """

    def __init__(self, channels: int, height: int, *, fusion: str, dropout: float = 0.5) -> None:
        super().__init__()
        self.fusion = fusion
        self.mlp = nn.Sequential(
            nn.Linear(METADATA_VALUES, 64),
            nn.Dropout(dropout),
            nn.ReLU(inplace=True),
            nn.Linear(64, 32),
            nn.Dropout(dropout),
            nn.ReLU(inplace=True),
            nn.Linear(32, height if fusion == "rows" else channels),
        )

    def forward(self, feature: Tensor, metadata: Tensor) -> Tensor:
        """Add encoded metadata (B, 45) to a feature map (B, channels, height, width)."""
        values: Tensor = self.mlp(metadata)
        if self.fusion == "rows":
            return feature + values[:, None, :, None]
        return feature + values[:, :, None, None]
