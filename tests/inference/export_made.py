"""Small networks as runs leave them, with statistics that make their results differ by patch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flair2_exp.data.sentinel2 import Series
from flair2_exp.inference.patches import Tile
from flair2_exp.inference.predictor import Predictor
from flair2_exp.nomenclature import AERIAL_BANDS
from tests.training.helpers import PATCH, build_task

SERIES = 16
Arrays = dict[str, NDArray[Any]]

NORMALISATION = {
    "image": {"bands": AERIAL_BANDS, "mean": (0.4, 0.5, 0.3, 0.6, 0.1),
              "std": (0.2, 0.1, 0.3, 0.15, 0.05)},
    "series": {"bands": tuple("abcdefghij"), "mean": (0.1,) * 10, "std": (0.2,) * 10},
}  # fmt: skip


class Branching(nn.Module):
    """A network whose steps depend on the values of its input, which no graph can hold."""

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(bands, classes, 1)

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> Tensor:
        y: Tensor = self.convolution(image)
        return y if float(image.mean()) > 0.5 else -y


def checkpoint(path: Path, *overrides: str, **options: Any) -> Path:
    """Write the checkpoint of an untrained network, whose batch normalisations have seen data.

    Args:
        path: Where to.
        overrides: Of a command line.
        options: Hyper-parameters that replace the task's.
    """
    task = build_task("data.workers=0", *overrides)
    arrays = patches(3)
    arrays["image"] = arrays["image"].astype(np.float32) / 255
    arrays["series"] = arrays["series"].astype(np.float32) / 10_000
    batch = {name: torch.from_numpy(each) for name, each in arrays.items()}
    with torch.no_grad():
        for _ in range(3):
            task.train()({**batch, "label": torch.zeros(3, PATCH, PATCH)})
    content = {
        "state_dict": task.state_dict(),
        "hyper_parameters": {**dict(task.hparams), **options},
    }
    torch.save(content, path)
    return path


def patches(count: int, seed: int = 0) -> Arrays:
    """Random inputs of some patches, as files hold them; the later series are shorter."""
    draws = np.random.default_rng(seed)
    padding = np.zeros((count, 5), bool)
    padding[1:, 3:] = True
    series = draws.integers(100, 5000, (count, 5, 10, SERIES, SERIES)).astype(np.uint16)
    series[padding] = 0
    return {
        "image": draws.integers(0, 256, (count, 5, PATCH, PATCH)).astype(np.uint8),
        "series": series,
        "days": np.where(padding, 0, draws.integers(-150, 200, (count, 5))),
        "padding": padding,
        "metadata": draws.random((count, 45)).astype(np.float32),
    }


def expected(predictor: Predictor, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """What the predictor says of each patch by itself, without padding: (B, C, P, P)."""
    made = []
    monthly = predictor.members[0].inputs.s2_preproc.monthly
    for at in range(len(arrays["image"])):
        real = ~arrays["padding"][at]
        frames = arrays["series"][at][real].astype(np.float32 if monthly else np.uint16)
        tile = Tile(
            arrays["image"][at],
            Series(frames, arrays["days"][at][real], False),
            arrays["metadata"][at],
        )
        made.append(next(predictor.predictions(predictor.batches([tile]))).probabilities)
    return np.stack(made)


def fed(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """The patches as an exported graph takes them, whatever it reads."""
    return {
        **arrays,
        "image": arrays["image"].astype(np.float32) / np.float32(255),
        "series": arrays["series"].astype(np.float32),
    }
