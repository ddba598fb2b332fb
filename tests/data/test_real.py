"""Real FLAIR #2 patches, from their files and from a prepared store."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from flair2_exp.data.preparation import prepare
from flair2_exp.run import experiment, results
from flair2_exp.run.assembly import build_data
from tests.configs import compose_config

SHARED = Path(__file__).parents[3] / "shared" / "flair2_real"


@pytest.fixture
def real() -> Path:
    """The folder of the real patches."""
    place = Path(os.environ.get("FLAIR2_REAL_DIR", SHARED))
    if not place.is_dir():
        pytest.skip(f"no real patches in {place}; FLAIR2_REAL_DIR says where they are")
    return place


def test_an_epoch_on_real_patches_scores_alike_from_the_files_and_from_a_store(
    real: Path, tmp_path: Path
) -> None:
    overrides = [
        f"paths.root={tmp_path}", "preset=debug", "tracking=off", "trainer=cpu", "dataset=real",
        f"dataset.root={real}", "model=utt", "s2_preproc=monthly_cloudfree", "metadata=on",
        "trainer.limit_train_batches=null",
    ]  # fmt: skip
    store = tmp_path / "store"
    data = build_data(compose_config(*overrides))
    done = prepare(data.index, store, patch_size=data.patch_size, series=data.series)
    assert (done.patches, done.damaged, done.incomplete) == (5, 0, 0)
    scores: list[dict[str, float]] = []
    for name, more in (("files", []), ("store", [f"dataset.store={store}"])):
        folder = tmp_path / name
        experiment.run(compose_config(*overrides, *more), folder, [])
        metrics: dict[str, float] = json.loads((folder / results.METRICS).read_text())
        scores.append({key: value for key, value in metrics.items() if "seconds" not in key})
    assert scores[0] == scores[1]
    assert np.isfinite([scores[0][f"{part}/loss"] for part in ("train", "val", "test")]).all()
