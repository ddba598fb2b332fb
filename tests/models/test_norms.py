"""Batches of one patch whose deepest map is one pixel."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from flair2_exp.models.norms import tolerate_single_values
from tests.configs import run

SMALLEST = ("dataset.sample.patch_size=32", "s2_preproc.size=16")


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3)], ids=str)
def test_one_value_per_channel_is_normalised_as_in_evaluation(shape: tuple[int, ...]) -> None:
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3)
    assert norm.running_mean is not None
    norm.running_mean += 1.0
    tolerate_single_values(norm)
    norm = copy.deepcopy(norm)
    values, before = torch.randn(shape), norm.running_mean.clone()
    expected = norm.eval()(values)
    assert torch.equal(norm.train()(values), expected)
    assert norm.training
    assert torch.equal(norm.running_mean, before)


def test_more_values_are_normalised_as_ever() -> None:
    plain, tolerant = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    tolerate_single_values(tolerant)
    for shape in ((2, 3, 1, 1), (1, 3, 2, 1)):
        values = torch.randn(shape)
        assert torch.equal(plain(values), tolerant(values))
    assert torch.equal(plain.running_var, tolerant.running_var)


@pytest.mark.parametrize("model", ["model=unet", "model=utt"])
@pytest.mark.parametrize("batch_size", [1, 5])  # with 5 the last batch holds one of 16 patches
def test_batches_of_one_patch_train(model: str, batch_size: int, tmp_path: Path) -> None:
    metrics = run(
        tmp_path, tmp_path / "run", model, "metadata=on", *SMALLEST, "data.workers=0",
        f"data.batch_size={batch_size}", "data.val_batch_size=1",
        "trainer.limit_train_batches=null", "trainer.max_epochs=1",
    )  # fmt: skip
    assert metrics["train/epochs"] == 1
