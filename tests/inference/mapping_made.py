"""Small networks, rasters and maps for the tests of mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio import Affine
from torch import Tensor

from flair2_exp.inference.predictor import Predictor
from flair2_exp.nomenclature import AERIAL_BANDS
from tests.training.helpers import build_task

METRES = 1.6
"""Of a pixel, where patches have 64."""
CLASSES = 13


def checkpoint(path: Path, *overrides: str) -> Path:
    """Save a network that is not trained, but sure of what it says."""
    task = build_task("model=unet", "data=aerial_only", *overrides)
    with torch.no_grad():
        last = [each for each in task.modules() if isinstance(each, torch.nn.Conv2d)][-1]
        last.weight *= 30
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}, path)
    return path


class Echo(Predictor):
    """Says of each pixel the class that its first band names: nothing is left to the network.

    Attributes:
        seen: How many tiles it was given.
    """

    seen = 0

    def probabilities(self, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
        first = batches[0]["image"][:, 0].long() % CLASSES
        self.seen += len(first)
        return torch.nn.functional.one_hot(first, CLASSES).permute(0, 3, 1, 2).float()


def echo(path: Path, patch: int = 16) -> Echo:
    """An echo in patches of a few pixels."""
    made = Echo.from_run(path, device="cpu")
    made.patch_size = patch
    return made


def pixels(height: int, width: int, seed: int = 0, low: int = 0) -> np.ndarray:
    """(5, H, W) uint8, in fields of 7 pixels."""
    shape = (5, height // 7 + 1, width // 7 + 1)
    fields = np.random.default_rng(seed).integers(low, 256, shape, dtype=np.uint8)
    return np.kron(fields, np.ones((1, 7, 7), np.uint8))[:, :height, :width]


def raster(
    path: Path,
    values: np.ndarray,
    *,
    west: float = 600_000.0,
    north: float = 6_500_000.0,
    metres: float = METRES,
    names: Sequence[str] = AERIAL_BANDS,
    **options: Any,
) -> Path:
    """Write a GeoTIFF of (C, H, W) values."""
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": values.shape[0],
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "crs": "EPSG:2154",
        "transform": Affine(metres, 0, west, 0, -metres, north),
    }
    with rasterio.open(path, "w", **{**profile, **options}) as file:
        file.write(values)
        for band, name in enumerate(names[: values.shape[0]], start=1):
            file.set_band_description(band, name)
    return path


def read(path: Path) -> np.ndarray:
    """(H, W) of a map: class indices, 255 where there is none."""
    with rasterio.open(path) as file:
        values = file.read(1).astype(int)
    return np.where(values == 255, 255, values - 1)
