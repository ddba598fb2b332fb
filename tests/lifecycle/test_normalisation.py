"""What a run takes from its training patches' statistics, and what an evaluation takes from it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from flair2_exp.errors import CheckpointError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_metrics
from flair2_exp.nomenclature import CLASSES_13
from flair2_exp.report.counts import read_counts
from flair2_exp.training.checkpoint import read_checkpoint
from tests.configs import run

BY_DATA = ("model=unet", "data.normalisation=dataset")


@pytest.fixture(scope="module")
def first(root: Path) -> RunFolder:
    """A run that was normalised and weighted by the statistics of its own data."""
    folder = RunFolder(root / "by_data")
    run(root, folder.path, *BY_DATA, "loss.class_weighting=sqrt_inverse")
    return folder


def test_a_checkpoint_holds_what_its_training_was_normalised_and_weighted_by(
    first: RunFolder, root: Path, tmp_path: Path
) -> None:
    options = read_checkpoint(first.best)["hyper_parameters"]
    image = options["normalisation"]["image"]
    assert image["bands"] == ["red", "green", "blue", "nir", "elevation"]
    assert options["normalisation"]["series"] is None
    assert all(0 < each < 1 for each in (*image["mean"], *image["std"]))
    weights = options["loss"]["class_weights"]
    assert list(weights) == [each.name for each in CLASSES_13]
    assert weights["other"] == 0
    assert len({*weights.values()}) > 5

    # On other data, and from the checkpoint alone, the training's values hold.
    again = RunFolder(tmp_path / "again")
    tested = (*BY_DATA, "train=false", f"checkpoint={first.best}")
    assert run(root, again.path, *tested)["test/miou"] == read_metrics(first)["test/miou"]
    run(tmp_path, tmp_path / "other", *tested, "dataset.sample.seed=3")
    kept = [path for path in tmp_path.rglob("statistics-*.json")]
    assert not kept
    with pytest.raises(CheckpointError, match=r"Use data\.normalisation=dataset"):
        run(root, tmp_path / "x", "model=unet", "train=false", f"checkpoint={first.best}")
    turned = "data.bands=[nir,green,blue,red,elevation]"
    with pytest.raises(CheckpointError, match=re.escape("data.bands=[red,green,blue,nir")):
        run(root, tmp_path / "x", *tested, turned)


def test_weights_that_hold_their_statistics_are_tested_with_them(
    first: RunFolder, root: Path, tmp_path: Path
) -> None:
    content = read_checkpoint(first.best)
    mean = content["hyper_parameters"]["normalisation"]["image"]["mean"]
    content["hyper_parameters"]["normalisation"]["image"]["mean"] = [each + 1 for each in mean]
    torch.save(content, tmp_path / "moved.ckpt")
    tested = (*BY_DATA, "train=false")
    same = run(root, tmp_path / "a", *tested, f"model.weights={first.best}")
    moved = run(root, tmp_path / "b", *tested, f"model.weights={tmp_path / 'moved.ckpt'}")
    counts = [
        read_counts(RunFolder(path).confusion).confusion for path in (first.path, tmp_path / "a")
    ]
    np.testing.assert_array_equal(*counts)
    assert moved["test/loss"] != same["test/loss"]


def test_the_published_way_stores_and_changes_nothing(root: Path, tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "first")
    run(root, first.path, "model=unet")
    options = read_checkpoint(first.best)["hyper_parameters"]
    assert options["normalisation"] == {"image": None, "series": None}
    assert options["loss"]["class_weights"] == {"other": 0.0}
    del options["normalisation"]  # a checkpoint of before there was any
    content = read_checkpoint(first.best) | {"hyper_parameters": options}
    torch.save(content, tmp_path / "old.ckpt")
    old = ("model=unet", "train=false", f"checkpoint={tmp_path / 'old.ckpt'}")
    run(root, tmp_path / "old", *old)
    with pytest.raises(CheckpointError, match=r"Use data\.normalisation=none"):
        run(root, tmp_path / "x", *old, "data.normalisation=imagenet")
