"""The panel of test patches: what is kept of them while a run is tested, for a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from flair2_exp.models.heads import footprint

TRUE_COLOUR: Final = (2, 1, 0)
"""B4, B3, B2 among the satellite bands."""


@dataclass
class PanelRow:
    """One test patch of the panel."""

    patch: str
    image: npt.NDArray[np.uint8]
    """(H, W, 3) red, green, blue, 0..255."""
    truth: npt.NDArray[np.uint8]
    """(H, W) class indices."""
    prediction: npt.NDArray[np.uint8]
    """(H, W) class indices."""


@dataclass
class PanelCollector(Callback):
    """Keeps evenly spaced test patches with their predictions, for a figure.

    Args:
        count: How many patches; 0 keeps none.
        total: How many patches the test set has.
        rgb: Positions among the image's bands of those shown as red, green and blue.
        stretched: Whether each patch is shown between its own 2nd and 98th percentile, rather than
            between 0 and 1.
        undone: Returns a batch as it was before normalisation; None: it is as it was.
    """

    count: int
    total: int
    rgb: tuple[int, int, int] = (0, 1, 2)
    stretched: bool = False
    undone: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    rows: list[PanelRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        spaced = np.linspace(0, max(0, self.total - 1), min(self.count, self.total))
        self._wanted = set(spaced.round().astype(int).tolist())
        self._seen = 0

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self.rows.clear()
        self._seen = 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the wanted patches of a batch."""
        self.keep(batch, outputs)

    def keep(self, batch: Mapping[str, Any], prediction: Tensor) -> None:
        """Keep the wanted patches of the next batch.

        Args:
            batch: Scaled.
            prediction: (B, H, W) class indices.
        """
        seen = range(self._seen, self._seen + len(batch["patch_id"]))
        if self.undone is not None and self._wanted & {*seen}:
            batch = self.undone(batch)
        for position, patch in enumerate(batch["patch_id"]):
            if self._seen + position in self._wanted:
                image = self._picture(batch, position)
                truth, predicted = (
                    each[position].to(torch.uint8).cpu().numpy()
                    for each in (batch["label"], prediction)
                )
                self.rows.append(PanelRow(patch, image, truth, predicted))
        self._seen += len(batch["patch_id"])

    def _picture(self, batch: Mapping[str, Any], position: int) -> npt.NDArray[np.uint8]:
        """Draw a patch, (H, W, 3) uint8: its aerial image, or where there is none its series."""
        image = batch.get("image")
        if image is not None:
            picture = image[position, list(self.rgb)].float().cpu().numpy()
            if self.stretched:
                low, high = np.percentile(picture, (2, 98))
                picture = (picture - low) / max(high - low, 1e-6)
        else:
            picture = _series_picture(batch, position)
        return np.asarray(np.moveaxis(picture * 255, 0, -1).clip(0, 255), dtype=np.uint8)


def shown_bands(bands: Sequence[str]) -> tuple[int, int, int]:
    """Return the positions of the bands that a panel shows as red, green and blue.

    These themselves where all three are there, else the first three, else the first one in grey.
    """
    if {"red", "green", "blue"} <= set(bands):
        return bands.index("red"), bands.index("green"), bands.index("blue")
    return (0, 1, 2) if len(bands) >= 3 else (0, 0, 0)


def _series_picture(batch: Mapping[str, Any], position: int) -> npt.NDArray[np.float32]:
    """Draw the footprint's median over time in true colour, stretched, at the label's size."""
    series = batch["series"][position].float()
    real = series[~batch["padding"][position]]
    median = footprint(real[:, list(TRUE_COLOUR)]).median(dim=0).values
    stretched = median / torch.quantile(median, 0.98).clamp_min(1e-6)
    resized = torch.nn.functional.interpolate(stretched[None], size=batch["label"].shape[-2:])
    return np.asarray(resized[0].cpu().numpy(), dtype=np.float32)
