"""Ensembles and test-time augmentation as runs: their scores, what they leave, what is refused."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flair2_exp.errors import ConfigError, DataError, FlairError, ShortageError, UsageError
from flair2_exp.inference import scoring
from flair2_exp.inference.evaluation import evaluate, require_scorable
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.scoring import score
from flair2_exp.inference.stored import StoredRun
from flair2_exp.lifecycle.delivery import rebuild
from flair2_exp.lifecycle.experiment import run as run_experiment
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_metrics
from flair2_exp.locking import locked
from flair2_exp.report.folders import read_folders
from flair2_exp.report.leaderboard import build_report
from flair2_exp.report.results import ReportOptions
from flair2_exp.report.store import read_mlflow
from flair2_exp.tracking.store import local_uri
from flair2_exp.tracking.tags import Tag
from tests.configs import SMALL_SAMPLE, compose_config
from tests.lifecycle.helpers import record_of

pytestmark = pytest.mark.slow

COMMON = (
    "preset=debug", "trainer=cpu", *SMALL_SAMPLE, "dataset.sample.areas_per_domain=4",
    "dataset.sample.patches_per_area=1", "model.decoder_channels=[16,8,8,8,8]",
    "s2_preproc.size=16", "aug=none", "callbacks.panel.patches=2",
    *(f"trainer.limit_{part}_batches=null" for part in ("train", "val", "test")),
)  # fmt: skip


class World:
    """Trained runs on one sample, each trained at first use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = local_uri(root / "mlruns")

    def run(self, name: str, seed: int, *overrides: str) -> Path:
        folder = self.root / f"multirun/{name}/{seed}"
        if not folder.exists():
            words = (f"paths.root={self.root}", *COMMON, f"name={name}", f"seed={seed}", *overrides)
            run_experiment(compose_config(*words), folder, words)
        return folder

    def unet(self, seed: int = 1) -> Path:
        return self.run("unet", seed, "model=unet", "data=aerial_only")

    def utt(self) -> Path:
        return self.run("utt", 1, "model=utt")

    def predictor(self, *runs: Path, tta: str = "none", **options: Any) -> Predictor:
        stored = [StoredRun.find(run) for run in runs]
        return Predictor(stored, symmetries=tta, device="cpu", **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def arrays(folder: RunFolder) -> dict[str, Any]:
    with np.load(folder.confusion) as stored:
        return dict(stored)


@pytest.mark.thorough
def test_one_run_with_d4_is_scored_as_its_own_test_with_it(world: World, tmp_path: Path) -> None:
    first = world.unet()
    scored = score(world.predictor(first, tta="d4"), tmp_path, tracked=False)
    words = (f"paths.root={world.root}", *COMMON, "name=unet", "seed=1", "model=unet",
             "data=aerial_only", "tracking=off", "test_time=d4")  # fmt: skip
    run_experiment(compose_config(*words), tmp_path / "run", words)
    own = RunFolder(tmp_path / "run")
    assert record_of(scored.path).identity == record_of(own.path).identity
    assert record_of(scored.path).row == "unet (d4)"
    ours, theirs = arrays(scored), arrays(own)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    metrics, expected = read_metrics(scored), read_metrics(own)
    tested = [name for name in expected if name.startswith("test/") and name != "test/loss"]
    # Lightning logs in single precision.
    assert [metrics[name] for name in tested] == pytest.approx(
        [expected[name] for name in tested], rel=1e-6
    )
    assert metrics["model/parameters"] == expected["model/parameters"]


def test_an_ensemble_is_scored_as_numpy_does_of_its_members(world: World, tmp_path: Path) -> None:
    """A U-Net and a U-T&T, one weighed three times, counted pixel by pixel."""
    runs, weights = (world.unet(), world.utt()), (0.75, 0.25)
    together = world.predictor(*runs, weights=[3, 1])
    scored = arrays(score(together, tmp_path, tracked=False))
    alone = [list(world.predictor(run).split("test")) for run in runs]
    assert len(alone[0]) == len(scored["patch_ids"]) > 1
    by_id = dict(zip(scored["patch_ids"].tolist(), scored["confusion"], strict=True))
    for members in zip(*alone, strict=True):
        each = zip(weights, members, strict=True)
        mean = sum(weight * one.prediction.probabilities.astype(np.float64) for weight, one in each)
        predicted, truth = np.asarray(mean).argmax(axis=0), members[0].truth
        expected = np.zeros((13, 13), np.int64)
        np.add.at(expected, (truth.ravel(), predicted.ravel()), 1)
        expected[12] = 0  # metric.other_pixels=drop
        assert np.abs(by_id[members[0].patch_id] - expected).sum() <= 4  # ties by rounding


def test_a_report_takes_scores_as_rows_beside_their_members(world: World) -> None:
    unets = [world.unet(seed) for seed in (1, 2)]
    for run in unets:
        score(world.predictor(run, tta="d4"), world.root)
    score(world.predictor(*unets), world.root, name="both")
    score(world.predictor(unets[0], world.utt()), world.root)
    world.utt()
    rows = {"unet": 2, "unet (d4)": 2, "both": 1, "ensemble of 2: unet + utt": 1, "utt": 1}
    by_folder = read_folders([world.root / "multirun", world.root / "outputs"])
    by_mlflow = read_mlflow(world.uri, tags={Tag.DATASET: "sample"})
    for runs in (by_folder, by_mlflow):
        report = build_report(runs, ReportOptions(baseline="unet", resamples=1000))
        assert {row.name: len(row.runs) for row in report.rows} == rows
        assert {(each.row, each.state) for each in report.absent} == {("utt", "missing")}
        for row in report.rows:
            assert row.miou.low is not None
            assert row.published is None
        pairs = {each.row: each for each in report.differences if each.other == "unet"}
        assert pairs["both"].miou.p is None or np.isnan(pairs["both"].miou.p)
        assert pairs["unet (d4)"].miou.p is not None


def test_inputs_of_all_members_are_recorded_and_their_data(world: World, tmp_path: Path) -> None:
    folder = score(world.predictor(world.unet(), world.utt()), tmp_path, tracked=False)
    tags, utt = record_of(folder.path).tags, record_of(world.utt()).tags
    for tag in (Tag.READS, Tag.FINGERPRINT, Tag.TEST_FINGERPRINT):
        assert tags[tag] == utt[tag]
    assert Tag.SEED not in tags
    assert tags[Tag.MODEL] == "unet+utt"


def test_the_same_again_and_in_another_order_is_found_finished(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = world.unet(1), world.unet(2)
    first = score(world.predictor(*runs), tmp_path, tracking_uri=local_uri(tmp_path / "mlruns"))
    before = {path: path.stat().st_mtime_ns for path in first.path.iterdir() if path.suffix}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing is predicted again")

    monkeypatch.setattr(scoring, "evaluate", never)
    again = score(
        world.predictor(*reversed(runs)), tmp_path, tracking_uri=local_uri(tmp_path / "mlruns")
    )
    assert again.path == first.path
    assert {path: path.stat().st_mtime_ns for path in before} == before


KILLED = """
import os, signal, sys
from pathlib import Path
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.scoring import score
from flair2_exp.inference.stored import StoredRun

def die(done: int, of: int) -> None:
    if done == of // 2:
        os.kill(os.getpid(), signal.SIGKILL)

runs = [StoredRun.find(each) for each in sys.argv[3:]]
score(Predictor(runs), Path(sys.argv[1]), tracking_uri=sys.argv[2], progress=die)
"""


def test_what_is_killed_is_never_finished_and_is_done_again(world: World, tmp_path: Path) -> None:
    runs, uri = (world.unet(1), world.unet(2)), local_uri(tmp_path / "mlruns")
    words = [sys.executable, "-c", KILLED, str(tmp_path), uri, *map(str, runs)]
    assert subprocess.run(words, env=os.environ, check=False).returncode == -9
    (left,) = (path.parent for path in tmp_path.rglob("run.json"))
    record = record_of(left)
    assert record.status == "RUNNING"
    assert not RunFolder(left).metrics.exists()
    again = score(world.predictor(*runs), tmp_path, tracking_uri=uri)
    assert again.path == left
    assert record_of(left).status == "FINISHED"
    assert record_of(left).run_id == record.run_id
    report = build_report(read_mlflow(uri, tags={Tag.DATASET: "sample"}))
    assert [row.name for row in report.rows] == ["ensemble of 2: unet"]


def test_a_full_disk_and_an_interruption_leave_no_finished_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flair2_exp.lifecycle import results

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    predictor = world.predictor(world.unet(), tta="flips")
    with monkeypatch.context() as patch:
        patch.setattr(results, "save_results", full)
        with pytest.raises(ShortageError, match=r"disk is full.*\n.*same command"):
            score(predictor, tmp_path, folder=tmp_path / "run", tracked=False)
    assert record_of(tmp_path / "run").status == "FAILED"

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(predictor, tmp_path, folder=tmp_path / "run", tracked=False, progress=interrupt)
    assert record_of(tmp_path / "run").status == "KILLED"
    score(predictor, tmp_path, folder=tmp_path / "run", tracked=False)
    assert record_of(tmp_path / "run").status == "FINISHED"


def test_a_score_is_not_a_network_and_names_those_that_it_is_of(
    world: World, tmp_path: Path
) -> None:
    folder = score(world.predictor(world.unet(), tta="d4"), tmp_path, tracked=False)
    with pytest.raises(ConfigError, match=r"and not a network\.\n.*multirun/unet/1"):
        StoredRun.find(folder.path)


def test_its_mlflow_run_can_be_made_again_from_its_folder(world: World, tmp_path: Path) -> None:
    from flair2_exp.lifecycle.assembly import store_at

    folder = score(world.predictor(world.unet(1), world.unet(2)), tmp_path, tracked=False)
    store = store_at(local_uri(tmp_path / "mlruns"))
    rebuild(folder, record_of(folder.path), store)
    run = store.find(record_of(folder.path).run_id)
    assert run is not None
    assert run.data.params["ensemble.weights"] == "[0.5, 0.5]"
    assert run.data.metrics["test/miou"] == read_metrics(folder)["test/miou"]
    assert "unet seed 2" in run.data.tags[Tag.DESCRIPTION]


def test_what_is_no_score_of_its_own_is_refused_and_leaves_nothing(
    world: World, tmp_path: Path
) -> None:
    unet = world.unet()
    moved = tmp_path / "lone.ckpt"
    shutil.copy(RunFolder(unet).best, moved)
    with pytest.raises(UsageError, match=r"one run, predicted as in its own test"):
        score(world.predictor(unet), tmp_path / "out")
    with pytest.raises(ConfigError, match="checkpoint without its run"):
        score(world.predictor(moved, tta="d4"), tmp_path / "out")
    with pytest.raises(ConfigError, match="name="):
        score(world.predictor(unet, tta="d4"), tmp_path / "out", name="../x")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_or_in_use_is_refused(world: World, tmp_path: Path) -> None:
    predictor, place = world.predictor(world.unet(), tta="d4"), tmp_path / "run"
    score(predictor, tmp_path, folder=place, tracked=False)
    with pytest.raises(ConfigError, match=r"another run: name: unet \(d4\) -> other"):
        score(predictor, tmp_path, folder=place, tracked=False, name="other")
    with pytest.raises(ConfigError, match="holds another run"):
        score(predictor, tmp_path, folder=world.unet(2), tracked=False)
    with locked(tmp_path / "held"), pytest.raises(ConfigError, match="in use by process"):
        score(predictor, tmp_path, folder=tmp_path / "held", tracked=False)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.yaml").write_text("theirs: 1\n")
    with pytest.raises(ConfigError, match="not from a run of this program"):
        score(predictor, tmp_path, folder=tmp_path / "foreign", tracked=False)
    assert (tmp_path / "foreign/config.yaml").read_text() == "theirs: 1\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": {"other_pixels": "keep"}}, "different metric settings"),
        ({"split": {"name": "reference"}}, "different splits"),
        ({"dataset": {"name": "mine"}}, "different data sets"),
    ],
)
def test_runs_without_a_common_score_are_refused(
    options: dict[str, dict[str, Any]], message: str, world: World
) -> None:
    predictor = world.predictor(world.unet(1), world.unet(2))
    other = predictor.members[1]
    config = other.stored.config
    assert config is not None
    groups = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in options.items()
    }
    other.stored = dataclasses.replace(other.stored, config=dataclasses.replace(config, **groups))
    with pytest.raises(ConfigError, match=message):
        require_scorable(predictor)


def test_test_data_that_changed_since_the_runs_test_are_refused(
    world: World, tmp_path: Path
) -> None:
    unet = Path(shutil.copytree(world.unet(), tmp_path / "unet"))
    record = record_of(unet)
    record.tags[str(Tag.TEST_FINGERPRINT)] = "0" * 64
    record.write(RunFolder(unet))
    predictor = world.predictor(unet, tta="d4")
    with pytest.raises(DataError, match="not the one of its own test"):
        require_scorable(predictor)


def test_other_parts_are_scored_without_a_run(world: World) -> None:
    predictor = world.predictor(world.unet())
    scores = evaluate(predictor, "validation").metrics
    expected = json.loads(RunFolder(world.unet()).metrics.read_text())
    assert scores["val/miou"] == pytest.approx(expected["val/miou"], abs=0.02)
    with pytest.raises(FlairError, match="did you mean validation"):
        evaluate(predictor, "valid")


def test_a_score_does_not_depend_on_batches(world: World, caplog: pytest.LogCaptureFixture) -> None:
    predictor = world.predictor(world.unet(), world.utt(), tta="flips")
    with caplog.at_level(logging.WARNING):
        one, many = (evaluate(predictor, batch_size=size) for size in (1, 3))
    for first, second in itertools.pairwise((one.results, many.results)):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name].confusion, second[name].confusion)
