"""The published evaluation by a whole run: files, loader, test loop, stored counts.

The golden inputs are random numbers that no file of FLAIR #2 can hold: images are bytes, series
are 16-bit integers, metadata are encoded from a record. So the tree on the disk holds the nearest
values that files can, and behind the loader the golden ones take their place, which undoes nothing
but that rounding. Of labels, only every 8th pixel counts, as the vectors hold no other: the rest is
"other", in a row of its own.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from flair2_exp.data.datamodule import FlairDataModule
from flair2_exp.lifecycle.experiment import run as run_experiment
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_metrics
from flair2_exp.training.task import SegmentationTask
from tests.configs import compose_config
from tests.data.trees import Tree, write_raster
from tests.golden_vectors import golden
from tests.models.helpers import golden_inputs, golden_sizes, golden_weights

pytestmark = pytest.mark.usefixtures("both_cores")

TOLERANCE = 4e-4  # of the golden README, for logits
OTHER = 12
VALIDATION, BRIGHT = "IMG_000001", "IMG_000002"
"""Patches with a series of one date, white: the latter is the first of the test set, whose context
a whole batch gets by the quirk `fusion.collapsed=first_sample`."""
EPOCH = datetime.date(2021, 5, 15)
"""From which the baseline counts days, backwards."""


@dataclass
class Published:
    """The golden samples as patches of a tree."""

    inputs: dict[str, Tensor] = field(default_factory=golden_inputs)
    logits: NDArray[np.float32] = field(
        default_factory=lambda: golden("utt_small")["out/utt_logits_one_by_one_div8"]
    )

    @property
    def patches(self) -> list[str]:
        return [f"IMG_{10 + n:06d}" for n in range(len(self.logits))]

    def real(self, n: int) -> Tensor:
        """Which dates of a sample are no padding: (T,) bool."""
        return (self.inputs["series"][n] != 0).flatten(1).any(1)

    def labels(self) -> NDArray[np.int64]:
        """Of every 8th pixel, (B, h, w); "other" where two classes tie but for rounding."""
        labels = self.inputs["label"][:, ::8, ::8].numpy()
        best = np.sort(self.logits, axis=1)
        return np.where(best[:, -1] - best[:, -2] > 2 * TOLERANCE, labels, OTHER)

    def counts(self) -> NDArray[np.int64]:
        """The confusion counts of the golden logits, (B, 12, 13): those of "other" left out."""
        counts = np.zeros((len(self.logits), OTHER + 1, OTHER + 1), dtype=np.int64)
        sample = np.arange(len(self.logits))[:, None, None]
        np.add.at(counts, (sample, self.labels(), self.logits.argmax(1)), 1)
        return counts[:, :OTHER]

    def write(self, root: Path) -> Tree:
        """Write the samples, behind a bright patch, as a test tree; and a validation patch."""
        areas = {"D004_2021/Z1_NN": (VALIDATION,), "D015_2020/Z0_NN": (BRIGHT,)}
        areas |= {f"D015_2020/Z{n + 1}_NN": (patch,) for n, patch in enumerate(self.patches)}
        tree = Tree(root, areas, tuple(area for area in areas if area.startswith("D015")))
        side = self.inputs["image"].shape[-1]
        size = self.inputs["series"].shape[-1]
        for patch in (VALIDATION, BRIGHT):
            white = np.full((1, 10, size, size), 65535)
            self._write(tree, patch, np.zeros((5, side, side)), white, [0])
        for n, patch in enumerate(self.patches):
            real = self.real(n)
            frames = (self.inputs["series"][n, real] * 65535).round().numpy()
            image = (self.inputs["image"][n] * 255).round().numpy()
            self._write(tree, patch, image, frames, self.inputs["days"][n, real].tolist())
            mask = np.full((1, side, side), OTHER + 1)
            mask[0, ::8, ::8] = self.labels()[n] + 1
            write_raster(tree.mask(patch), mask)
        patches = [patch for of_area in areas.values() for patch in of_area]
        centroids = {f"{patch}.tif": [size // 2, size // 2] for patch in patches}
        tree.centroids.write_text(json.dumps(centroids))
        record = {
            "patch_centroid_x": 9e5, "patch_centroid_y": 6.5e6, "patch_centroid_z": 39.5,
            "date": "2020-07-09", "time": "9h05", "camera": "UCE",
        }  # fmt: skip
        places = {patch: dict(zip(("domain", "zone"), area.split("/"), strict=True))
                  for area, of_area in areas.items() for patch in of_area}  # fmt: skip
        tree.metadata.write_text(json.dumps({patch: places[patch] | record for patch in patches}))
        return tree

    def _write(
        self, tree: Tree, patch: str, image: NDArray[Any], frames: NDArray[Any], days: Sequence[int]
    ) -> None:
        """Write an area of one patch."""
        area = tree.area(patch)
        write_raster(tree.image(patch), image)
        write_raster(tree.mask(patch), np.ones((1, *image.shape[1:])))
        tree.series(area, "data.npy").parent.mkdir(parents=True)
        np.save(tree.series(area, "data.npy"), frames.astype(np.uint16))
        clear = np.zeros((len(frames), 2, *frames.shape[2:]), dtype=np.uint8)
        np.save(tree.series(area, "masks.npy"), clear)
        dates = [EPOCH - datetime.timedelta(int(day)) for day in days]
        tree.series(area, "products.txt").write_text(
            "".join(f"S2A_MSIL2A_{date:%Y%m%d}T104431_N0211_R008_T32UMD\n" for date in dates)
        )

    def unround(self, batch: dict[str, Any]) -> None:
        """Put the golden inputs in the place of a scaled batch's, which are those but rounded."""
        for row, patch in enumerate(batch["patch_id"]):
            if patch not in self.patches:
                continue
            n = self.patches.index(patch)
            real = self.real(n)
            dates = int(real.sum())
            assert batch["padding"][row].tolist() == [False] * dates + [True] * (
                len(batch["padding"][row]) - dates
            )
            assert torch.equal(batch["days"][row, :dates], self.inputs["days"][n, real].long())
            for loaded, exact, steps in (
                (batch["image"][row], self.inputs["image"][n], 255),
                (batch["series"][row, :dates], self.inputs["series"][n, real], 65535),
            ):
                assert (loaded - exact).abs().max() <= 0.51 / steps  # half a step, in float32
                loaded.copy_(exact)
            batch["metadata"][row] = self.inputs["metadata"][n]


@pytest.fixture(scope="module")
def published() -> Published:
    return Published()


@pytest.fixture(scope="module")
def common(published: Published, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line that tests the golden weights as published."""
    root = tmp_path_factory.mktemp("published")
    published.write(root / "tree")
    return [
        f"paths.root={root}", "dataset=flair2", f"dataset.root={root / 'tree'}", "compat=reference",
        *golden_sizes(), "s2_preproc=raw", f"model.weights={golden_weights(root)}", "train=false",
        "data.val_batch_size=1", "data.workers=0", "tracking=off", "trainer=cpu",
    ]  # fmt: skip


@pytest.mark.parametrize("batches", ["", "data.test_batch_size=10"])
def test_the_stored_counts_are_the_published_ones_in_the_published_batches_alone(
    batches: str,
    common: list[str],
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale, classify = FlairDataModule.on_after_batch_transfer, SegmentationTask.predict_classes
    logits: list[Tensor] = []

    def unrounded(self: FlairDataModule, batch: dict[str, Any], index: int) -> dict[str, Any]:
        scaled = scale(self, batch, index)
        published.unround(scaled)
        return scaled

    def noted(self: SegmentationTask, outputs: dict[str, Tensor]) -> Tensor:
        if self.trainer.testing:
            logits.append(outputs["aerial"][..., ::8, ::8])
        return classify(self, outputs)

    monkeypatch.setattr(FlairDataModule, "on_after_batch_transfer", unrounded)
    monkeypatch.setattr(SegmentationTask, "predict_classes", noted)
    overrides = [*common, *([batches] if batches else [])]
    folder = RunFolder(tmp_path / "run")
    run_experiment(compose_config(*overrides), folder.path, overrides)

    with np.load(folder.confusion, allow_pickle=False) as kept:
        assert kept["patch_ids"].tolist() == [BRIGHT, *published.patches]
        counts = kept["confusion"][1:]
    assert (counts.sum((1, 2)) == published.inputs["label"][0].numel()).all()
    error = (torch.cat(logits)[1:] - torch.from_numpy(published.logits)).abs().amax((1, 2, 3))
    moved = abs(counts[:, :OTHER] - published.counts()).sum((1, 2))
    if batches:
        assert (error > 10 * TOLERANCE).all()
        assert moved.all()
    else:
        assert (error <= TOLERANCE).all()
        assert not moved.any()
    metrics = read_metrics(folder)
    assert metrics["test/patches"] == len(counts) + 1
    per_patch = metrics["inference/seconds"] / metrics["test/patches"]
    assert metrics["inference/seconds_per_patch"] == pytest.approx(per_patch)
