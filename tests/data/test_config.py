"""From a config to the batch: `compat=reference` gives the baseline's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flair2_exp.config.data import DataGroups
from flair2_exp.config.fields import build, hints, plain
from flair2_exp.data.datamodule import FlairDataModule
from tests.configs import compose_config
from tests.data.trees import TEST_AREA, Tree, edit_json
from tests.golden_vectors import golden


def groups_of(*overrides: str) -> DataGroups:
    """The data's groups of a composed config."""
    config: Any = compose_config(*overrides)
    groups = {
        name: build(group, plain(getattr(config, name)))
        for name, group in hints(DataGroups).items()
    }
    return DataGroups(**groups)


@pytest.mark.parametrize("name", ["raw", "cloudfree", "monthly", "monthly_cloudfree"])
def test_a_batch_of_compat_reference_is_the_baselines(own_tree: Tree, name: str) -> None:
    """The golden area and a golden record in the place of the test patch's."""
    area, record = golden("s2_preproc"), golden("metadata")
    np.save(own_tree.series(TEST_AREA, "data.npy"), area["data"])
    np.save(own_tree.series(TEST_AREA, "masks.npy"), area["masks"])
    own_tree.series(TEST_AREA, "products.txt").write_text(str(area["products"]))
    edit_json(own_tree.centroids, **{"IMG_000005.tif": area["centroid"].tolist()})
    first_record = next(iter(json.loads(str(record["metadata_json"])).values()))
    edit_json(own_tree.metadata, IMG_000005=first_record)

    groups = groups_of(
        "dataset=flair2", f"dataset.root={own_tree.root}", "compat=reference", "metadata=on",
        f"s2_preproc={name}", f"s2_preproc.size={area['crop_data'].shape[-1]}", "data.workers=0",
    )  # fmt: skip
    reads = frozenset({"aerial", "satellite", "metadata"})
    data = FlairDataModule(groups, reads=reads)
    data.setup()
    (batch,) = data.test_dataloader()
    frames = data.on_after_batch_transfer(batch, 0)["series"][0].numpy()
    assert batch["days"][0].tolist() == area[f"{name}_dates"].tolist()
    if f"{name}_out" in area:
        np.testing.assert_allclose(frames, area[f"{name}_out"], rtol=1e-6)
    else:
        means = frames.mean(axis=(2, 3), dtype=np.float64)
        np.testing.assert_allclose(means, area[f"{name}_out_mean"], rtol=1e-6)
    np.testing.assert_allclose(batch["metadata"][0], record["encoded"][0], rtol=1e-6, atol=1e-12)
