"""Runs from Python: what a notebook calls."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

import flair2_exp
from flair2_exp.errors import CheckpointError, ConfigError, DataError, FlairError, UsageError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RUNNING
from flair2_exp.locking import locked
from flair2_exp.signals import signals_as_exceptions
from tests.configs import SMALL_SAMPLE
from tests.lifecycle.made import config_below, finished_folder

WORDS = ("preset=debug", *SMALL_SAMPLE, "trainer=cpu", "tracking=off", "model=unet",
         "data=aerial_only", "trainer.max_epochs=2")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> flair2_exp.Run:
    """A run that `flair2_exp.run` has made."""
    root = tmp_path_factory.mktemp("api")
    return flair2_exp.run([f"paths.root={root}", *WORDS])


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'pandas', 'mlflow', 'lightning', 'hydra', 'numpy'}"
    code = f"import sys, flair2_exp; print({heavy} & {{*sys.modules}}, flair2_exp.run.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "set() run", done.stderr


def test_its_names_are_those_that_it_says_it_has() -> None:
    assert {*flair2_exp.__all__} <= {*dir(flair2_exp)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flair2_exp.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_run_has_its_config_its_scores_and_its_network(trained: flair2_exp.Run) -> None:
    assert trained.status == "done"
    assert trained.config.model.name == "unet"
    assert trained.config.trainer.max_epochs == 2
    assert trained.mlflow_id == ""
    assert trained.history["epoch"].tolist() == [1, 2]
    best = trained.history.set_index("val/loss").loc[trained.history["val/loss"].min()]
    assert best["val/miou"] == pytest.approx(trained.scores["best/val/miou"], abs=1e-6)
    assert trained.counts.patches == trained.scores["test/patches"]
    stored = np.load(RunFolder(trained.folder).confusion)["confusion"]
    assert (trained.confusion == stored.sum(axis=0)).all()
    for shown in (repr(trained), trained._repr_html_()):
        assert str(trained.folder) in shown
        assert f"test mIoU {trained.scores['test/miou']:.4f}" in shown


def test_a_run_is_found_by_its_folder(trained: flair2_exp.Run) -> None:
    for place in (trained.folder, str(trained.folder), trained.folder.parent):  # of this run alone
        assert flair2_exp.open_run(place).scores == trained.scores
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        flair2_exp.open_run(RunFolder(trained.folder).last.with_name("gone.ckpt"))


def test_the_same_run_again_is_not_run_and_what_a_run_sets_is_put_back(
    trained: flair2_exp.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    root, before = logging.getLogger(), os.getcwd()
    handlers, level, path = root.handlers[:], root.level, sys.path[:]
    words = [f"paths.root={trained.config.paths.root}", f"hydra.run.dir={trained.folder}", *WORDS]
    again = flair2_exp.run(words)
    assert again.folder == trained.folder
    assert "finished before" in capsys.readouterr().out
    assert (root.handlers, root.level, sys.path, os.getcwd()) == (handlers, level, path, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["model=unett"], ConfigError, "model=unett: no such option"),
        (["trainer.max_epochs=many"], ConfigError, "expected a whole number"),
        (["sweep.dry_run=true"], ConfigError, "this is a single run"),
        (["optimizer.lrr=1"], ConfigError, "no such option of optimizer"),
        (["sweep=leaderboard"], UsageError, "expected the overrides of one run"),
        (["--cfg", "job"], UsageError, "expected the overrides of one run"),
    ],
)
def test_what_the_command_refuses_is_raised(
    words: list[str], kind: type[FlairError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as caught:
        flair2_exp.run([f"paths.root={tmp_path}", *words])
    assert not any(tmp_path.iterdir())
    assert "hydra/_internal" not in "".join(traceback.format_exception(caught.value))


def test_a_second_ctrl_c_ends_the_run_and_not_the_notebook() -> None:
    caught = 0
    try:
        with signals_as_exceptions(lasting=True):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                caught += 1
                signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        caught += 1
    assert caught == 2


def test_a_run_that_has_not_been_tested_says_so(tmp_path: Path) -> None:
    folder = finished_folder(tmp_path / "outputs" / "it", config_below(tmp_path), status=RUNNING)
    run = flair2_exp.open_run(folder.path)
    assert run.status == "stopped"
    with pytest.raises(DataError, match="is missing"):
        run.counts  # noqa: B018
    with pytest.raises(FlairError):
        run.predictor()
    with locked(folder.path):
        assert flair2_exp.open_run(folder.path).status == "running"


def test_a_table_has_each_run_and_what_differs(
    trained: flair2_exp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, rate in ((1, 0.1), (2, 0.1), (3, 0.01)):
        config = config_below(tmp_path, f"seed={seed}", f"optimizer.lr={rate}", "name=made")
        finished_folder(tmp_path / "outputs" / f"{seed}", config)
    shutil.copytree(trained.folder, tmp_path / "multirun" / "some" / "0")
    monkeypatch.setenv("FLAIR2_EXP_ROOT", str(tmp_path))
    table = flair2_exp.runs()
    assert len(table) == 4
    assert table["test/miou"].is_monotonic_decreasing
    assert set(table["optimizer.lr"]) >= {0.1, 0.01}
    assert table["started"].notna().all()
    one = flair2_exp.runs(where=["name=made", "optimizer.lr<0.1"])
    assert one["seed"].tolist() == [3]
    assert one["folder"].tolist() == [str(tmp_path / "outputs" / "3")]
    assert flair2_exp.runs(sweep="some")["model"].tolist() == ["unet"]
    assert flair2_exp.runs(tmp_path / "outputs", where="status=failed").empty
    with pytest.raises(UsageError, match="did you mean"):
        flair2_exp.runs(where="modle=unet")
    with pytest.raises(ConfigError, match="no such folder"):
        flair2_exp.runs(tmp_path / "nowhere")
