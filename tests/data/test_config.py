"""From the command line to the batch: options arrive, and `compat=reference` is the baseline."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flair2_exp.config.data import (
    AugConfig,
    MetadataConfig,
    S2PreprocConfig,
    SplitConfig,
)
from flair2_exp.run.assembly import build_data
from tests.configs import compose_config
from tests.data.trees import TEST_AREA, Tree
from tests.golden_vectors import golden

OPTIONS = {
    "s2_preproc.cloud_filter": True, "s2_preproc.monthly": True, "s2_preproc.size": 24,
    "s2_preproc.threshold": 50, "s2_preproc.max_cover": 0.25, "s2_preproc.cover": "sum",
    "s2_preproc.on_empty": "error", "s2_preproc.scale": "reference", "s2_preproc.days": "reference",
    "aug.geometry": "d4", "aug.probability": 0.25, "aug.satellite": False, "aug.brightness": 0.125,
    "aug.contrast": 0.25, "aug.gamma": 0.375, "aug.noise": 0.0625, "aug.zoom": 0.5,
    "aug.drop_dates": 0.75, "metadata.month": "reference",
}  # fmt: skip
"""A value other than the default for each."""


def test_every_option_of_the_config_reaches_the_data(shared_tree: Tree) -> None:
    data = build_data(
        compose_config(
            "dataset=flair2", f"dataset.root={shared_tree.root}", "s2_preproc=raw", "aug=none",
            "metadata=on", "split=reference", "split.train_fraction=0.5", "split.seed=7", "seed=5",
            "data.batch_size=3", "data.eval_batch_size=4", "data.workers=0",
            "dataset.on_damaged=skip", *(f"{name}={value}" for name, value in OPTIONS.items()),
        )
    )  # fmt: skip
    assert data.series == S2PreprocConfig(
        cloud_filter=True, monthly=True, size=24, threshold=50, max_cover=0.25, cover="sum",
        on_empty="error", scale="reference", days="reference",
    )  # fmt: skip
    assert data.augmentation == AugConfig(
        geometry="d4", probability=0.25, satellite=False, brightness=0.125, contrast=0.25,
        gamma=0.375, noise=0.0625, zoom=0.5, drop_dates=0.75,
    )  # fmt: skip
    assert data.metadata_options == MetadataConfig("reference")
    assert data.split_options == SplitConfig(name="reference", None, 0.5, 7)
    assert (data.seed, data.batch_size, data.eval_batch_size, data.workers) == (5, 3, 4, 0)
    assert data.on_damaged == "skip"


@pytest.mark.parametrize("name", ["raw", "cloudfree", "monthly", "monthly_cloudfree"])
def test_a_batch_of_compat_reference_is_the_baselines(own_tree: Tree, name: str) -> None:
    """The golden area and a golden record in the place of the test patch's."""
    area, record = golden("s2_preproc"), golden("metadata")
    np.save(own_tree.series(TEST_AREA, "data.npy"), area["data"])
    np.save(own_tree.series(TEST_AREA, "masks.npy"), area["masks"])
    own_tree.series(TEST_AREA, "products.txt").write_text(str(area["products"]))
    places = json.loads(own_tree.centroids.read_text())
    places["IMG_000005.tif"] = area["centroid"].tolist()
    own_tree.centroids.write_text(json.dumps(places))
    contents = json.loads(own_tree.metadata.read_text())
    contents["IMG_000005"] = next(iter(json.loads(str(record["metadata_json"])).values()))
    own_tree.metadata.write_text(json.dumps(contents))

    data = build_data(
        compose_config(
            "dataset=flair2", f"dataset.root={own_tree.root}", "compat=reference", "metadata=on",
            f"s2_preproc={name}", f"s2_preproc.size={area['crop_data'].shape[-1]}",
            "data.workers=0",
        )
    )  # fmt: skip
    (batch,) = data.test_dataloader()
    frames = data.on_after_batch_transfer(batch, 0)["series"][0].numpy()
    assert batch["days"][0].tolist() == area[f"{name}_dates"].tolist()
    if f"{name}_out" in area:
        np.testing.assert_allclose(frames, area[f"{name}_out"], rtol=1e-6)
    else:
        means = frames.mean(axis=(2, 3), dtype=np.float64)
        np.testing.assert_allclose(means, area[f"{name}_out_mean"], rtol=1e-6)
    np.testing.assert_allclose(batch["metadata"][0], record["encoded"][0], rtol=1e-6, atol=1e-12)
