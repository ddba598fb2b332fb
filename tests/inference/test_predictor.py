from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flair2_exp.errors import CheckpointError, ConfigError, DataError, FlairError, UsageError
from flair2_exp.inference.patches import Acquisitions
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.stored import StoredRun
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RUNNING, RunRecord
from flair2_exp.score import confusion_matrix
from tests.inference.conftest import trained


def counts_of(run: Path) -> dict[str, np.ndarray]:
    """The counts that a run's own test kept, by patch."""
    with np.load(RunFolder(run).confusion) as counts:
        return dict(zip(counts["patch_ids"].tolist(), counts["confusion"], strict=True))


@pytest.mark.parametrize("run", ["unet_run", "utt_run"])
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 2)])
def test_a_split_is_predicted_as_the_runs_own_test_did(
    run: str, batch_size: int, workers: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(run)
    counts = counts_of(folder)
    predicted = list(Predictor.from_run(folder).split(batch_size=batch_size, workers=workers))
    assert {each.patch_id for each in predicted} == set(counts)
    for each in predicted:
        own = confusion_matrix(each.truth, each.prediction.classes, 13, drop_truth=12)
        assert np.array_equal(own, counts[each.patch_id]), each.patch_id


@pytest.mark.parametrize("run", ["unet_run", "utt_run"])
def test_probabilities_are_equal_bits_whatever_batch_and_order(
    run: str, request: pytest.FixtureRequest
) -> None:
    predictor = Predictor.from_run(request.getfixturevalue(run))
    single = {each.patch: each for each in predictor.split()}
    backwards = sorted(single, reverse=True)
    for each in predictor.split(batch_size=len(single), only=backwards):
        own = single[each.patch].prediction
        assert np.array_equal(each.prediction.probabilities, own.probabilities)
        assert np.array_equal(each.prediction.classes, own.classes)


def test_a_patch_is_the_same_from_arrays_of_its_files(utt_run: Path) -> None:
    predictor = Predictor.from_run(utt_run)
    (data,) = predictor.data
    patch = int(data.split.test[0])
    own = predictor.predict_patch(str(data.index.ids[patch]))
    sample = data.source.read(patch)
    metadata = data.source.metadata(np.array([patch]))[0]
    by_offsets = predictor.predict(sample.image, sample.frames, sample.days, metadata)
    assert np.array_equal(by_offsets.probabilities, own.probabilities)

    from flair2_exp.data.readers import open_series, read_dates
    from flair2_exp.data.sentinel2 import crop_window

    files = data.index.series_files(int(data.index.area[patch]))
    frames = open_series(files.data, 10, ("<u2",))
    clouds = open_series(files.masks, 2, ("|u1",))
    rows, columns = crop_window(data.index.centroids[patch].tolist(), 16, frames.shape[2:])
    by_dates = predictor.predict(
        sample.image,
        np.array(frames[:, :, rows, columns]),
        read_dates(files.products),
        metadata,
        probabilities=np.array(clouds[:, :, rows, columns]),
    )
    assert np.array_equal(by_dates.probabilities, own.probabilities)
    assert np.allclose(own.probabilities.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(own.confidence, own.probabilities.max(axis=0))


def test_a_checkpoint_that_was_moved_away_predicts_what_its_run_does(
    unet_run: Path, tmp_path: Path
) -> None:
    lone = tmp_path / "network.ckpt"
    shutil.copyfile(RunFolder(unet_run).best, lone)
    predictor = Predictor.from_run(lone)
    image = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    expected = Predictor.from_run(unet_run).predict(image)
    assert np.array_equal(predictor.predict(image).probabilities, expected.probabilities)
    with pytest.raises(ConfigError, match="without its run"):
        next(predictor.split())


def test_an_ensemble_is_the_weighted_mean_of_networks_of_other_inputs(
    unet_run: Path, utt_run: Path
) -> None:
    weights = (3.0, 1.0)
    ensemble = Predictor.from_runs([unet_run, utt_run], weights=weights)
    members = [Predictor.from_run(run) for run in (unet_run, utt_run)]
    for each, *single in zip(ensemble.split(), *(one.split() for one in members), strict=True):
        mean = 0.75 * single[0].prediction.probabilities + 0.25 * single[1].prediction.probabilities
        assert np.allclose(each.prediction.probabilities, mean, atol=1e-6)
        certain = np.abs(np.diff(np.sort(mean, axis=0)[-2:], axis=0))[0] > 1e-5
        assert np.array_equal(each.prediction.classes[certain], mean.argmax(axis=0)[certain])


def test_test_time_augmentation_is_the_mean_over_turned_images(unet_run: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    single = Predictor.from_run(unet_run)
    mean = np.zeros((13, 64, 64))
    for turns in range(4):
        for mirrored in (False, True):
            moved = np.rot90(image[..., ::-1] if mirrored else image, turns, (-2, -1))
            made = single.predict(np.ascontiguousarray(moved)).probabilities
            back = np.rot90(made, -turns, (-2, -1))
            mean += (back[..., ::-1] if mirrored else back) / 8
    made = Predictor.from_run(unet_run, tta="d4").predict(image)
    assert np.allclose(made.probabilities, mean, atol=1e-6)


def test_where_a_quirk_looks_at_the_batch_patches_are_predicted_one_by_one(root: Path) -> None:
    folder = trained(root, "quirk", "model=utt", "metadata=off", "compat=reference",
                     "s2_preproc.size=16", "data.test_batch_size=1", "data.batch_size=2",
                     "data.val_batch_size=2", "split=official")  # fmt: skip
    counts = counts_of(folder)
    for each in Predictor.from_run(folder).split(batch_size=4):
        own = confusion_matrix(each.truth, each.prediction.classes, 13)
        assert np.array_equal(own, counts[each.patch_id])


IMAGE = np.zeros((5, 64, 64), np.uint8)
SERIES = np.zeros((3, 10, 16, 16), np.uint16)
DAYS = np.array([1, 2, 3])
METADATA = np.zeros(45, np.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, SERIES, DAYS, METADATA), "no image: expected (5, 64, 64) uint8, the bands red"),
        ((IMAGE[:4], SERIES, DAYS, METADATA), "image (4, 64, 64) uint8: expected (5, 64, 64)"),
        ((IMAGE / 255, SERIES, DAYS, METADATA), "float64: expected (5, 64, 64) uint8"),
        ((IMAGE, None, None, METADATA), "reads a satellite series, and there is none"),
        ((IMAGE, SERIES, None, METADATA), "a series needs its days"),
        ((IMAGE, SERIES, DAYS[:2], METADATA), "2 days of 3 frames"),
        ((IMAGE, SERIES[:, :9], DAYS, METADATA), "expected (dates, 10, 16, 16) uint16"),
        ((IMAGE, SERIES.astype(float), DAYS, METADATA), "float64: expected"),
        ((IMAGE, SERIES, DAYS / 2, METADATA), "days of float64"),
        ((IMAGE, SERIES, DAYS.astype("datetime64[D]"), METADATA), "no snow and cloud"),
        ((IMAGE, SERIES, DAYS, None), "metadata: none; expected (45,)"),
    ],
)
def test_arrays_that_the_network_does_not_read_are_refused(
    utt_run: Path, given: tuple[np.ndarray | None, ...], message: str
) -> None:
    with pytest.raises(DataError) as refusal:
        Predictor.from_run(utt_run).predict(*given)  # type: ignore[arg-type]
    assert message in str(refusal.value)


def test_series_smaller_than_the_run_reads_are_refused() -> None:
    from flair2_exp.config.data import S2PreprocConfig

    few = Acquisitions(SERIES, np.array(["2021-01-01"] * 3, "datetime64[D]"))
    with pytest.raises(DataError, match="series of 16 x 16 pixels"):
        few.preprocessed(S2PreprocConfig(size=40))


def test_a_run_of_a_few_batches_is_refused(root: Path, unet_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(unet_run, tmp_path / "limited")
    config = RunFolder(copy).config
    config.write_text(
        config.read_text().replace("limit_train_batches: null", "limit_train_batches: 1")
    )
    with pytest.raises(ConfigError, match=r"trainer\.limit_train_batches=1"):
        StoredRun.find(copy)


def test_a_run_without_a_checkpoint_is_refused(unet_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(unet_run, tmp_path / "untrained")
    shutil.rmtree(RunFolder(copy).checkpoints)
    with pytest.raises(CheckpointError, match=r"has no best.ckpt \(its run is finished\)"):
        StoredRun.find(copy)


def test_a_run_that_has_not_finished_predicts_with_a_warning(
    unet_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = RunFolder(shutil.copytree(unet_run, tmp_path / "running"))
    record = RunRecord.read(copy)
    assert record is not None
    record.status = RUNNING
    record.write(copy)
    assert StoredRun.find(copy.path).checkpoint == copy.best
    assert "has not finished (running)" in caplog.text


def test_a_run_of_another_version_is_refused_by_name(unet_run: Path, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(unet_run, tmp_path / "other"))
    content = json.loads(copy.record.read_text())
    copy.record.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ConfigError, match="format 99"):
        StoredRun.find(copy.path)

    checkpoint = torch.load(copy.best, weights_only=True)
    checkpoint["hyper_parameters"]["network"]["surprise"] = 1
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    with pytest.raises(CheckpointError, match="describes a network that this version"):
        Predictor.from_run(tmp_path / "newer.ckpt")

    del checkpoint["hyper_parameters"]["network"]["surprise"]
    checkpoint["hyper_parameters"]["inputs"] = None
    torch.save(checkpoint, tmp_path / "older.ckpt")
    with pytest.raises(ConfigError, match="did not keep how images were scaled"):
        Predictor.from_run(tmp_path / "older.ckpt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no such run"),
        ("nowhere.ckpt", "there is no such checkpoint"),
        (".", "does not hold a run"),
        ("0" * 32, "there is no MLflow database"),
    ],
)
def test_what_is_not_a_run_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlairError, match=message):
        StoredRun.find(name)
    assert not any(tmp_path.iterdir())


def test_networks_of_other_classes_make_no_ensemble(root: Path, unet_run: Path) -> None:
    other = trained(root, "nineteen", "model=unet", "data=aerial_only", "data.classes=19")
    with pytest.raises(ConfigError, match="different classes"):
        Predictor.from_runs([unet_run, other])


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (-1.0, 2.0), (float("nan"), 1.0)])
def test_weights_that_make_no_mean_are_refused(
    unet_run: Path, utt_run: Path, weights: tuple[float, ...]
) -> None:
    with pytest.raises(UsageError, match="expected one each"):
        Predictor.from_runs([unet_run, utt_run], weights=weights)
