"""One experiment, end to end, on the smallest sample: scores, files, checkpoints, MLflow."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flair2_exp.errors import DataError
from flair2_exp.lifecycle import experiment
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED, RunRecord, read_metrics
from flair2_exp.report.store import read_mlflow
from flair2_exp.tracking.tags import Tag
from tests.configs import SMALL_SAMPLE, compose_config, run
from tests.lifecycle.helpers import FULL, record_of
from tests.training.test_device import LEFT_OVER

SATELLITE = ["raw", "cloudfree", "monthly", "monthly_cloudfree"]
CASES = [
    ["model=unet", "data=aerial_only"],
    ["model=unet", "data=aerial_s2", "metadata=on"],
    *(["model=utae", f"s2_preproc={option}"] for option in ("raw", "monthly_cloudfree")),
    *(["model=utt", f"s2_preproc={option}"] for option in SATELLITE),
    ["model=utt", "compat=reference", "split=official", "metadata=on", "s2_preproc=raw"],
]


@pytest.fixture(scope="module", autouse=True)
def _plain_figures() -> None:
    """These runs draw, as they do outside of tests."""


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_each_model_and_preprocessing_trains_and_is_scored(
    overrides: list[str], root: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    metrics = run(root, folder.path, *overrides)
    assert np.isfinite([metrics["train/loss"], metrics["val/loss"], metrics["test/loss"]]).all()
    assert 0.0 <= metrics["test/miou"] <= 1.0
    with np.load(folder.confusion, allow_pickle=False) as kept:
        patches = kept["patch_ids"]
        assert kept["confusion"].shape == (len(patches), 13, 13)
        assert metrics["test/patches"] == len(kept["patch_ids"])
        # With the published metric every pixel is counted; without "other", no more than all.
        pixels = kept["confusion"].sum(axis=(1, 2))
        assert (pixels <= 64 * 64).all()
        if "compat=reference" in overrides:
            assert (pixels == 64 * 64).all()
    with np.load(folder.panel, allow_pickle=False) as panel:
        number = len(panel["patch_ids"])
        assert {*panel["patch_ids"]} <= {*patches}
        assert panel["images"].shape == (number, 64, 64, 3)
        assert panel["truths"].shape == panel["predictions"].shape == (number, 64, 64)
    figures = (folder.confusion_figure, folder.panel_figure)
    for path in (folder.config, folder.history, folder.best, *figures):
        assert path.stat().st_size > 0


@pytest.fixture(scope="module")
def tracked(root: Path) -> tuple[RunFolder, Any]:
    """A finished run in a local MLflow store, and the store's client."""
    folder = RunFolder(root / "tracked")
    config = compose_config(
        f"paths.root={root}", "preset=debug", "trainer=cpu", *SMALL_SAMPLE, "model=utt",
    )  # fmt: skip
    experiment.run(config, folder.path, ["preset=debug"])
    from mlflow.tracking import MlflowClient

    return folder, MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")


def test_a_checkpoint_is_tested_as_it_is_and_trained_on(
    tracked: tuple[RunFolder, Any], root: Path, tmp_path: Path
) -> None:
    first, _ = tracked
    before = read_metrics(first)
    checkpoint = f"checkpoint={first.best}"
    tested = run(root, tmp_path / "tested", checkpoint, "train=false")
    assert tested["test/miou"] == before["test/miou"]
    assert tested["test/loss"] == before["test/loss"]
    longer = run(root, tmp_path / "longer", checkpoint, "trainer.max_epochs=2")
    assert longer["train/epochs"] == 2.0
    for path in (first.best, first.last):  # they hold tensors and plain values alone
        content = torch.load(path, weights_only=True)
        assert content["hyper_parameters"]["network"]["model"]["name"] == "utt"


def test_mlflow_keeps_all_that_a_run_was_and_measured(tracked: tuple[RunFolder, Any]) -> None:
    folder, client = tracked
    record = record_of(folder.path)
    kept = client.get_run(record.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.params["s2_preproc.monthly"] == "true"
    assert kept.data.params["optimizer.lr"] == "0.003"
    assert kept.data.metrics["test/miou"] == json.loads(folder.metrics.read_text())["test/miou"]
    assert {"train/loss", "val/miou", "inference/seconds_per_patch"} <= kept.data.metrics.keys()
    assert record.tags.items() <= kept.data.tags.items()
    assert kept.data.tags[Tag.FINGERPRINT] == record.deciding["fingerprint"] != ""
    artifacts = {
        item.path
        for part in ("config", "provenance", "results", "")
        for item in client.list_artifacts(record.run_id, part)
    }
    assert {
        "config/config.yaml", "config/deciding.json", "config/overrides.yaml",
        "provenance/git.json", "provenance/packages.txt", "provenance/machine.json",
        "provenance/dataset.json", "results/metrics.json", "results/confusion_per_patch.npz",
        "results/history.csv", "confusion.png", "panel.png",
    } <= artifacts  # fmt: skip


def test_a_report_knows_a_run_of_the_store_as_it_knows_its_folder(
    tracked: tuple[RunFolder, Any], root: Path
) -> None:
    record = record_of(tracked[0].path)
    (kept,) = read_mlflow(f"sqlite:///{root}/mlruns/mlflow.db", run_ids=[record.run_id]).runs
    assert kept.record.deciding == record.deciding != {}
    for name in (Tag.PACKAGES, Tag.MACHINE):
        assert kept.tag(name) == record.tags[name] != ""
    assert f"; torch=={importlib.metadata.version('torch')}; " in record.tags[Tag.PACKAGES]


def test_a_run_without_mlflow_notes_where_it_comes_from_too(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "run", "model=unet")
    tags = record_of(tmp_path / "run").tags
    assert {Tag.VERSION, Tag.PACKAGES, Tag.MACHINE} <= tags.keys()


@pytest.mark.usefixtures("tracked")  # which writes the sample
def test_a_patch_damaged_during_the_run_fails_it_by_name(root: Path, tmp_path: Path) -> None:
    whole = next((root / "data").glob("sample_64px_*"))
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    victim = sorted(copy.glob("flair_aerial_train/*/*/img/*.tif"))[1]
    size = victim.stat().st_size
    victim.write_bytes(victim.read_bytes()[:200] + os.urandom(size - 200))
    overrides = ["dataset=flair2", f"dataset.root={copy}", "model=unet", *FULL]
    with pytest.raises(DataError, match=victim.name):
        run(root, tmp_path / "run", *overrides)
    record = RunRecord.read(RunFolder(tmp_path / "run"))
    assert record is None or record.status == FAILED
    skipped = run(root, tmp_path / "skipping", *overrides, "dataset.on_damaged=skip")
    assert np.isfinite(skipped["test/loss"])


def test_ranks_left_over_in_the_environment_do_not_silence_a_run_on_one_device(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for left in LEFT_OVER:
        for name, value in left.items():
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "none")
    metrics = run(root, tmp_path, "model=unet", "tracking=off")
    folder = RunFolder(tmp_path)
    assert metrics["test/patches"] > 0
    assert folder.history.is_file()
    assert record_of(tmp_path).is_done(test=True)
