"""What every model of this package is."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class SegmentationModel(nn.Module):
    """A network that segments a batch; each model reads the modalities it needs."""

    main_head: ClassVar[str]
    """The key of the logits that are scored."""

    def forward(
        self,
        image: Tensor | None = None,
        series: Tensor | None = None,
        days: Tensor | None = None,
        padding: Tensor | None = None,
        metadata: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Segments a batch.

        Args:
            image: (B, bands, H, W), scaled; not read by `utae`.
            series: (B, T, 10, S, S), scaled; not read by `unet`.
            days: (B, T) day offsets.
            padding: (B, T) bool, True at padded dates; None: those that are zero everywhere.
            metadata: (B, 45); read where the model was built with metadata.

        Returns:
            Logits (B, classes, H, W) by head: "aerial", "satellite" or both.

        Raises:
            ValueError: If a modality that the model needs is None.
        """
        raise NotImplementedError
