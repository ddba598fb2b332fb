"""Searches as a user starts them: complete, taken up again, and what they leave behind."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from flair2_exp.config.compose import widths_around
from flair2_exp.config.data import DatasetConfig
from flair2_exp.config.groups import config_folder
from flair2_exp.config.training import best_direction
from flair2_exp.errors import ConfigError, DataError
from flair2_exp.lifecycle import assembly
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.optuna_sweeper import SweepError
from flair2_exp.optuna_sweeper.config import OptunaStudyConf
from flair2_exp.optuna_sweeper.search import Search
from flair2_exp.sweeps.tuning import facts_of, may_change, on_start, require_study_data
from tests.commands import Answer, answer
from tests.configs import SMALL_SAMPLE, compose_config
from tests.optuna_sweeper.toy import Launcher, states, trials_of
from tests.sweeps.commands import client, runs
from tests.sweeps.test_study_best import composed

pytestmark = pytest.mark.timeout(900)  # a whole search, whose own limit is below

SEARCH = (
    "tune=unet", "preset=debug", "trainer=cpu", "trainer.max_epochs=2", "tune.n_trials=4",
    "hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.sampler.n_startup_trials=2",
    *SMALL_SAMPLE,
)  # fmt: skip

# Sends the process a signal in the second epoch of trial 0, once.
STOPPED_ONCE = """
import os, pathlib
from flair2_exp.cli.main import main
from flair2_exp.training.progress import ShownProgress

mark, ends = pathlib.Path({mark!r}), ShownProgress.on_train_epoch_start

def dies(self, trainer, module):
    if trainer.current_epoch == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), {number})
    ends(self, trainer, module)

ShownProgress.on_train_epoch_start = dies
main({arguments!r})
"""


def command(root: Path, *arguments: str) -> Answer:
    """Give a command with `root` as its place."""
    return answer(*arguments, f"paths.root={root}")


def table(root: Path, name: str = "tune_unet") -> list[dict[str, str]]:
    with (root / "multirun" / name / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("searched")
    done = command(root, *SEARCH)
    assert done.status == 0, done.err[-2000:]
    return root


@pytest.mark.slow
def test_the_best_is_not_worse_than_the_default_which_is_tried_first(searched: Path) -> None:
    trials = table(searched)
    assert len(trials) == 4
    assert {row["state"] for row in trials} <= {"complete", "pruned"}
    first = trials[0]
    assert (float(first["optimizer.lr"]), first["aug"]) == (0.003, "flips")  # preset=tiny's, flips
    values = [float(row["value"]) for row in trials if row["state"] == "complete"]
    assert max(values) >= float(first["value"])


@pytest.mark.slow
def test_all_trials_stand_under_one_finished_parent(searched: Path) -> None:
    (parent,) = runs(searched, kind="study")
    children = [run for run in runs(searched, study="unet") if "flair2.trial" in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["flair2.trial"] for run in children} == {"0", "1", "2", "3"}
    assert {run.info.status for run in children} == {"FINISHED"}
    kept = {
        item.path
        for folder in ("", "experiment", "figures")
        for item in client(searched).list_artifacts(parent.info.run_id, folder)
    }
    assert {"trials.csv", "experiment/best.yaml", "figures/study.html"} <= kept
    assert {"figures/history.png", "figures/slice.png"} <= kept


@pytest.mark.slow
def test_a_pruned_run_is_finished_marked_and_without_checkpoints(searched: Path) -> None:
    pruned = {row["number"] for row in table(searched) if row["state"] == "pruned"}
    marked = {run.data.tags["flair2.trial"] for run in runs(searched, pruned="true")}
    assert marked == pruned
    for row in table(searched):
        folder = RunFolder(searched / "multirun/tune_unet" / row["number"])
        assert json.loads(folder.record.read_text())["pruned"] == (row["number"] in pruned)
        assert folder.best.exists() == (row["number"] not in pruned)
        assert "test/miou" not in json.loads(folder.metrics.read_text())


@pytest.mark.thorough
def test_a_search_on_the_sample_does_not_resume_on_another_sample(searched: Path) -> None:
    before = table(searched)
    done = command(searched, *SEARCH, "tune.n_trials=5", "dataset.sample.seed=7")
    assert done.status == 1
    refusal = r"study unet is another search: data \(aerial\) was \w+, now \w+"
    assert re.search(refusal, done.err), done.err
    assert "tune.name" in done.err
    assert table(searched) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.thorough),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.thorough),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.campaign),
    ],
)
def test_a_search_that_was_stopped_goes_on_from_its_trials_checkpoint(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    arguments = [*SEARCH, "tune.n_trials=1", f"paths.root={tmp_path}"]
    program = STOPPED_ONCE.format(
        mark=str(tmp_path / "stopped"), number=int(number), arguments=arguments
    )
    stopping = [sys.executable, "-c", program]
    stopped = subprocess.run(stopping, capture_output=True, text=True, timeout=300)
    assert stopped.returncode == status, stopped.stderr[-2000:]
    done = subprocess.run(stopping, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "from which the run resumes" in done.stdout + done.stderr
    lost, retried = table(tmp_path)
    assert (lost["state"], retried["state"], retried["retry_of"]) == ("lost", "complete", "0")
    folder = tmp_path / "multirun/tune_unet"
    assert not (folder / "1").exists()
    assert len(RunFolder(folder / "0").history.read_text().splitlines()) == 3
    (run,) = [each for each in runs(tmp_path, study="unet") if "flair2.trial" in each.data.tags]
    assert run.info.status == "FINISHED"


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[str, str]], Path]:
    """The trials before, and the search after it was given a larger total and seeds to compare."""
    root = tmp_path_factory.mktemp("completed")
    done = command(root, *SEARCH, "tune.n_trials=2")
    assert done.status == 0, done.err[-2000:]
    before = [(row["number"], row["value"]) for row in table(root)]
    done = command(root, *SEARCH, "tune.n_trials=3", "tune.repeat_best=2")
    assert done.status == 0, done.err[-2000:]
    return before, root


@pytest.mark.thorough
def test_a_larger_total_is_completed_and_no_trial_is_run_again(
    completed: tuple[list[tuple[str, str]], Path],
) -> None:
    before, root = completed
    trials = table(root)
    assert [(row["number"], row["value"]) for row in trials][:2] == before
    assert len([row for row in trials if row["state"] in ("complete", "pruned")]) == 3
    assert len(runs(root, kind="study")) == 1


@pytest.mark.thorough
def test_a_search_whose_store_was_lost_is_made_again_by_the_same_command(tmp_path: Path) -> None:
    line = (*SEARCH, "tune.n_trials=2")
    assert command(tmp_path, *line).status == 0
    shutil.rmtree(tmp_path / "mlruns")
    done = command(tmp_path, *line)
    assert done.status == 0, done.err[-2000:]
    (parent,) = runs(tmp_path, kind="study")
    trials = [run for run in runs(tmp_path, study="unet") if "flair2.trial" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert {run.data.tags["flair2.trial"] for run in trials} == {"0", "1"}
    assert {run.info.status for run in [parent, *trials]} == {"FINISHED"}
    assert "best/val/miou" in parent.data.metrics


@pytest.mark.thorough
def test_the_best_is_trained_against_the_default_over_seeds(
    completed: tuple[list[tuple[str, str]], Path],
) -> None:
    _, root = completed
    report = root / "multirun/tune_unet/repeat_best/report/leaderboard.json"
    (parent,) = runs(root, kind="study")
    best = parent.data.tags["flair2.best_trial"]
    rows = ["unet_default", *([f"unet_trial_{best}"] if best != "0" else [])]
    assert [row["row"] for row in json.loads(report.read_text())["rows"]] == rows
    kept = client(root).list_artifacts(parent.info.run_id, "repeat_best")
    assert "repeat_best/leaderboard.html" in {item.path for item in kept}


def prepared(*overrides: str) -> Search:
    """The search of a command line; Hydra is initialised."""
    overrides = ("hydra/sweeper=optuna_study", *overrides)
    whole = compose("config", list(overrides), return_hydra_config=True)
    options: Any = OmegaConf.to_container(whole.hydra.sweeper, resolve=True)
    return Search(
        options=OptunaStudyConf(**options),
        config=whole,
        launcher=Launcher(lambda _: {"val/miou": 0.5}),  # type: ignore[arg-type]
        config_loader=GlobalHydra.instance().config_loader(),
        arguments=[each for each in overrides if not each.startswith("hydra")],
    )


TUNES = sorted(path.stem for path in (config_folder() / "tune").glob("*.yaml"))
STARTS = [
    [],
    ["preset=tiny"],
    ["experiment=leaderboard/utt", "dataset.root=/data"],
    ["optimizer=adamw", "loss=focal", "aug=strong", "s2_preproc=raw"],
]


@pytest.mark.parametrize("start", STARTS, ids=" ".join)
@pytest.mark.parametrize("tune", TUNES)
def test_the_first_trial_of_every_search_is_the_default(tune: str, start: list[str]) -> None:
    overrides = [f"tune={tune}", *start]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        search = prepared(*overrides)
        (first,) = search.queue
        trial = search.space.overrides(first)
    assert set(first) == set(search.space.dimensions)
    assert composed(*trial) == {**composed(*overrides)}


def test_workers_whose_files_lie_elsewhere_share_a_study() -> None:
    """All places of the data may differ between machines: their fingerprint may not."""
    names = {f"dataset.{field.name}" for field in fields(DatasetConfig)}
    assert {name for name in names if not may_change(name)} == {
        "dataset.sample", "dataset.on_damaged", "dataset._target_", "dataset.options"
    }  # fmt: skip


@pytest.mark.parametrize(
    "free", ["tune.n_trials", "tracking", "tracking.tags.mine", "paths.root", "dataset.sample.seed"]
)
def test_what_decides_no_result_may_change(free: str) -> None:
    assert may_change(free)


@pytest.mark.parametrize("bound", ["tune", "compat", "quirk", "preset", "dataset", "optimizer.lr"])
def test_a_group_or_an_option_that_decides_may_not_change(bound: str) -> None:
    assert not may_change(bound)


def test_an_option_given_on_the_command_line_is_no_longer_searched() -> None:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        space = prepared("tune=unet", "optimizer=adamw", "optimizer.lr=0.001").space
        values = {name: entry.example for name, entry in space.dimensions.items()}
        trial = space.overrides(values)
    assert not any(name.startswith("optimizer.") and name != "optimizer.weight_decay"
                   for name in space.dimensions)  # fmt: skip
    assert composed(*trial)["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert composed(*trial)["optimizer"]["lr"] == 0.001


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files that are there, and whose fingerprint a test sets."""
    state = {"fingerprint": "first"}
    monkeypatch.setattr(assembly, "require_files", lambda _: None)
    monkeypatch.setattr(assembly, "require_feasible", lambda _: None)
    monkeypatch.setattr(assembly, "data_fingerprint", lambda _: state["fingerprint"])
    return state


REAL = ("dataset=flair2", "dataset.root=/data", "tracking=off", "tune=unet")
FACT = r"data \(aerial\) was first, now second"


def start(*overrides: str, searched: tuple[str, ...] = ()) -> dict[str, str]:
    """Check a command as its sweeper does."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        given = ["hydra/sweeper=optuna_study", *REAL, *overrides]
        config = compose("config", given, return_hydra_config=True)
        config.hydra.overrides.task.extend(searched)
        return on_start(config)


def search_once(root: Path, *overrides: str) -> list[list[int]]:
    """Search for one trial more than there is, in place of training; the jobs that it launched."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        search = prepared(*REAL, f"paths.root={root}", "hydra.sweeper.on_finish=null", *overrides)
        search.run()
        launcher: Any = search.launcher
    return launcher.batches


def test_a_search_over_other_data_is_refused_before_its_first_trial(
    data: dict[str, str], tmp_path: Path
) -> None:
    """Whatever led to them: a place, a variable of the environment, files changed in place."""
    assert search_once(tmp_path, "tune.n_trials=1") == [[0]]
    assert search_once(tmp_path, "tune.n_trials=2", "dataset.root=/a/copy") == [[1]]
    data["fingerprint"] = "second"
    with pytest.raises(SweepError, match=FACT + r"\.\n.*tune.name.* tune.on_change=new_study"):
        search_once(tmp_path, "tune.n_trials=3")
    journal = str(tmp_path / "multirun/tune_unet/optuna.journal")
    assert states(trials_of(journal, "unet")) == ["COMPLETE"] * 2
    search_once(tmp_path, "tune.n_trials=1", "tune.on_change=new_study")
    assert states(trials_of(journal, "unet-2")) == ["COMPLETE"]
    assert search_once(tmp_path, "tune.n_trials=1", "tune.name=other") == [[0]]


def test_weights_count_by_their_content(data: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"first")
    options = [f"model.weights={path}", "tune.n_trials=1"]
    search_once(tmp_path, *options)
    path.write_bytes(b"second")
    with pytest.raises(SweepError, match=r"weights was model.weights=sha256:\w+, now model"):
        search_once(tmp_path, *options)


def test_where_jobs_run_on_other_machines_the_place_of_the_data_must_be_equal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is read here, where the files may not be; each job checks them."""
    monkeypatch.setattr("flair2_exp.sweeps.tuning.distributes", lambda _: True)
    search_once(tmp_path, "tune.n_trials=1", "dataset.root=/scratch/a")
    search_once(tmp_path, "tune.n_trials=2", "dataset.root=/scratch/a")
    with pytest.raises(SweepError, match=r"dataset.root=/scratch/a.*, now .*root=/scratch/b"):
        search_once(tmp_path, "tune.n_trials=3", "dataset.root=/scratch/b")


class Trial:
    """The trial of a job, in a study that was made on the first data."""

    study_name = "unet"

    def __init__(self, *swept: str) -> None:
        self.params = dict.fromkeys(swept, 0)
        self.facts = facts_of(compose_config(*REAL), "first")

    def fact_changes(self, facts: dict[str, str]) -> list[str]:
        return [name for name, value in facts.items() if value != self.facts[name]]


def test_a_job_refuses_other_data_than_its_studys() -> None:
    config = compose_config(*REAL)
    require_study_data(Trial(), config, "first")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"study unet was made on .*\n.*tune.name=NAME"):
        require_study_data(Trial(), config, "second")  # type: ignore[arg-type]
    # Splits are searched over: each has its own patches.
    require_study_data(Trial("split.seed"), config, "second")  # type: ignore[arg-type]


@pytest.mark.usefixtures("data")
def test_a_group_may_be_searched_by_a_glob_and_seeds_may_not() -> None:
    start(searched=("model=glob(u*)",))
    with pytest.raises(ConfigError, match="over seeds finds the luckiest"):
        start(searched=("seed=1,2",))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=test/miou"], "has seen the test data"),
        (["objective=val/moiu"], "objective=val/moiu is never logged; did you mean val/miou"),
        (["sweep=factors"], "sweep=... and tune=... are two commands"),
        (["seed=1,2,3"], "over seeds finds the luckiest"),
        (["hydra/sweeper/sampler=grid"], "a grid has no end over .*interval"),
        (["hydra.sweeper.sampler._target_=optuna.samplers.TPESample"], "did you mean"),
        (["optimizer.lr=interval(1)"], "missing a required argument"),
        (["model.encoder=nosuch"], "model.encoder=nosuch does not exist"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_search_that_cannot_be_is_refused_in_two_lines(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    done = command(tmp_path, "tune=unet", *overrides)
    assert done.status == 1
    assert re.search(message, done.err), done.err
    assert len(done.err.splitlines()) <= 2
    assert not (tmp_path / "multirun").exists() or not list((tmp_path / "multirun").rglob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=train/los"], r"objective=train/los was never logged.*train/loss"),
        pytest.param(
            ["model.encoder=nosuch,neither", "tune.max_failures=1"],
            r"1 trials failed .*\n.*encoder",
            marks=pytest.mark.thorough,
        ),
    ],
    ids=["objective", "encoder"],
)
def test_a_search_whose_trials_fail_ends_and_leaves_no_run_open(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    """In the first trial, with what is wrong; the study's MLflow run is not RUNNING for ever."""
    done = command(tmp_path, *SEARCH, *overrides)
    assert done.status == 1
    assert re.search(message, done.err), done.err
    assert len([line for line in done.err.splitlines() if line.startswith("flair2-exp:")]) == 1
    assert len(table(tmp_path)) == 1
    assert [run.info.status for run in runs(tmp_path, kind="study")] == ["FINISHED"]


@pytest.mark.parametrize(
    ("objective", "direction"),
    [
        ("val/miou", "maximize"),
        ("val/accuracy", "maximize"),
        ("val/loss", "minimize"),
        (["val/miou", "inference/seconds_per_patch"], ["maximize", "minimize"]),
    ],
)
def test_scores_are_maximised_and_all_else_is_minimised(objective: Any, direction: Any) -> None:
    assert best_direction(objective) == direction


@pytest.mark.parametrize(
    ("widths", "choices"),
    [
        ([64, 64, 128, 128], "choice([32,32,128,128],[64,64,128,128],[128,128,128,128])"),
        ([16, 16, 32, 32], "choice([16,16,32,32],[32,32,32,32])"),
    ],
)
def test_widths_are_searched_about_those_of_the_config(widths: list[int], choices: str) -> None:
    assert widths_around(widths) == choices
