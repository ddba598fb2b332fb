"""Real FLAIR #2 patches, from their files and from a prepared store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from flair2_exp.data.preparation import prepare
from tests.configs import compose_config, run
from tests.data.trees import groups_of, source_of


@pytest.fixture
def real() -> Path:
    """The folder of the real patches."""
    place = os.environ.get("FLAIR2_REAL_DIR")
    if not place:
        pytest.skip("FLAIR2_REAL_DIR names no folder of real patches")
    return Path(place)


def test_an_epoch_on_real_patches_scores_alike_from_the_files_and_from_a_store(
    real: Path, tmp_path: Path
) -> None:
    overrides = [
        "dataset=flair2", f"dataset.root={real}", "model=utt", "s2_preproc=monthly_cloudfree",
        "metadata=on", "trainer.limit_train_batches=null",
    ]  # fmt: skip
    store = tmp_path / "store"
    series = compose_config(*overrides).s2_preproc
    done = prepare(
        source_of(groups_of(real), frozenset({"aerial", "satellite"}), 512), store, series=series
    )
    assert (done.patches, done.damaged, done.incomplete) == (
        len(list(real.rglob("IMG_*.tif"))),
        0,
        0,
    )
    scores: list[dict[str, float]] = []
    for name, more in (("files", []), ("store", [f"dataset.store={store}"])):
        metrics = run(tmp_path, tmp_path / name, *overrides, *more)
        scores.append({key: value for key, value in metrics.items() if "seconds" not in key})
    assert scores[0] == scores[1]
    assert np.isfinite([scores[0][f"{part}/loss"] for part in ("train", "val", "test")]).all()
