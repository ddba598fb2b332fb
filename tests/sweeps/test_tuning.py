"""Searches as a user starts them: complete, taken up again, and what they leave behind."""

from __future__ import annotations

import csv
import itertools
import json
import re
import signal
import subprocess
import sys
from dataclasses import fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from flair2_exp.config import schema
from flair2_exp.errors import ConfigError
from flair2_exp.optuna_sweeper.search import Search, SearchResult, read_options
from flair2_exp.optuna_sweeper.space import read_space
from flair2_exp.optuna_sweeper.storage import open_storage
from flair2_exp.sweeps.study_figures import write_figures
from flair2_exp.sweeps.tuning import on_start, repeated, write_experiment, write_experiments
from tests.configs import SMALL_SAMPLE
from tests.sweeps.test_ablation import client, runs, sweep

pytestmark = pytest.mark.timeout(900)  # a whole search, whose own limit is below

SEARCH = (
    "tune=unet", "preset=debug", "trainer=cpu", "trainer.max_epochs=2", "tune.n_trials=4",
    "hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.sampler.n_startup_trials=2",
    *SMALL_SAMPLE,
)  # fmt: skip

# Sends the process a signal in the second epoch of trial 0, once.
STOPPED_ONCE = """
import os, pathlib, signal, sys
from flair2_exp.__main__ import main
from flair2_exp.training.callbacks import EpochLines

mark, ends = pathlib.Path({mark!r}), EpochLines.on_train_epoch_start

def dies(self, trainer, module):
    if trainer.current_epoch == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), {number})
    ends(self, trainer, module)

EpochLines.on_train_epoch_start = dies
sys.argv = {arguments!r}
main()
"""


def table(root: Path, name: str = "tune_unet") -> list[dict[str, str]]:
    with (root / "multirun" / name / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("searched")
    done = sweep(root, *SEARCH)
    assert done.returncode == 0, done.stderr[-2000:]
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
        folder = searched / "multirun/tune_unet" / row["number"]
        assert json.loads((folder / "run.json").read_text())["pruned"] == (row["number"] in pruned)
        assert (folder / "checkpoints/best.ckpt").exists() == (row["number"] not in pruned)
        assert "test/miou" not in json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_search_that_was_stopped_goes_on_from_its_trials_checkpoint(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    arguments = ["flair2-exp", *SEARCH, "tune.n_trials=1", f"paths.root={tmp_path}"]
    program = STOPPED_ONCE.format(
        mark=str(tmp_path / "stopped"), number=int(number), arguments=arguments
    )
    command = [sys.executable, "-c", program]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert stopped.returncode == status, stopped.stderr[-2000:]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "going on from" in done.stdout + done.stderr
    lost, retried = table(tmp_path)
    assert (lost["state"], retried["state"], retried["retry_of"]) == ("lost", "complete", "0")
    folder = tmp_path / "multirun/tune_unet"
    assert not (folder / "1").exists()
    assert len((folder / "0/history.csv").read_text().splitlines()) == 3
    (run,) = [each for each in runs(tmp_path, study="unet") if "flair2.trial" in each.data.tags]
    assert run.info.status == "FINISHED"


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[str, str]], Path]:
    """The trials before, and the search after it was given a larger total and seeds to compare."""
    root = tmp_path_factory.mktemp("completed")
    done = sweep(root, *SEARCH, "tune.n_trials=2")
    assert done.returncode == 0, done.stderr[-2000:]
    before = [(row["number"], row["value"]) for row in table(root)]
    done = sweep(root, *SEARCH, "tune.n_trials=3", "tune.repeat_best=2")
    assert done.returncode == 0, done.stderr[-2000:]
    return before, root


@pytest.mark.slow
def test_a_larger_total_is_completed_and_no_trial_is_run_again(
    completed: tuple[list[tuple[str, str]], Path],
) -> None:
    before, root = completed
    trials = table(root)
    assert [(row["number"], row["value"]) for row in trials][:2] == before
    assert len([row for row in trials if row["state"] in ("complete", "pruned")]) == 3
    assert len(runs(root, kind="study")) == 1


@pytest.mark.slow
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
        options=read_options({k: v for k, v in options.items() if not k.startswith("_")}),
        config=whole,
        launcher=None,  # type: ignore[arg-type]
        config_loader=GlobalHydra.instance().config_loader(),
        arguments=[each for each in overrides if not each.startswith("hydra")],
    )


TUNES = sorted(path.stem for path in (schema.config_folder() / "tune").glob("*.yaml"))
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
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        search = prepared(*overrides)
        (first,) = search._queue
        trial = search._space.overrides(first)
    assert set(first) == set(search._space.dimensions)
    assert composed(*trial) == {**composed(*overrides)}


def test_workers_whose_files_lie_elsewhere_share_a_study() -> None:
    """All places of the data may differ between machines, what the data are may not."""
    names = {f"dataset.{field.name}" for field in fields(schema.DatasetConfig)}
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        patterns = prepared("tune=unet")._options.may_change
    fixed = {n for n in names if not any(fnmatch(n, pattern) for pattern in patterns)}
    assert fixed == {"dataset.name", "dataset.sample", "dataset.on_damaged"}


def test_an_option_given_on_the_command_line_is_no_longer_searched() -> None:
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        space = prepared("tune=unet", "optimizer=adamw", "optimizer.lr=0.001")._space
        values = {name: entry.points()[0] if entry.choices else entry.low
                  for name, entry in space.dimensions.items()}  # fmt: skip
        trial = space.overrides(values)
    assert not any(name.startswith("optimizer.") and name != "optimizer.weight_decay"
                   for name in space.dimensions)  # fmt: skip
    assert composed(*trial)["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert composed(*trial)["optimizer"]["lr"] == 0.001


def start(*overrides: str, searched: tuple[str, ...] = ()) -> None:
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        given = ["hydra/sweeper=optuna_study", "tune=unet", *overrides]
        config = compose("config", given, return_hydra_config=True)
        config.hydra.overrides.task.extend(searched)
        on_start(config)


def test_a_group_may_be_searched_by_a_glob_and_seeds_may_not() -> None:
    start(searched=("model=glob(u*)",))
    with pytest.raises(ConfigError, match="over seeds finds the luckiest"):
        start(searched=("seed=1,2",))


@pytest.mark.parametrize(
    "overrides",
    [["trainer=ddp", "trainer.devices=2"], ["trainer.devices=4"], ["trainer.num_nodes=2"]],
    ids=" ".join,
)
def test_trials_on_several_devices_are_refused(overrides: list[str]) -> None:
    """Lightning would start the command again, and the study had a worker more."""
    with pytest.raises(ConfigError, match=r"join the study.*\n.*once a device") as caught:
        start(*overrides)
    assert len(str(caught.value).splitlines()) == 2


def test_trials_on_one_device_or_started_by_slurm_are_not_refused() -> None:
    start("trainer=gpu", "seed=2")
    start("trainer.devices=2", "trainer.strategy=ddp_spawn")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm`")
    start("trainer=ddp", "trainer.devices=2", "hydra/launcher=submitit_slurm")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=test/miou"], "has seen the test data"),
        (["objective=val/moiu"], "objective=val/moiu is never logged; did you mean val/miou"),
        (["trainer.devices=2"], "once a device"),
        (["sweep=factors"], "sweep=... and tune=... are two commands"),
        (["seed=1,2,3"], "over seeds finds the luckiest"),
        (["hydra/sweeper/sampler=grid"], "a grid has no end over .*interval"),
        (["hydra.sweeper.sampler._target_=optuna.samplers.TPESample"], "did you mean"),
        (["optimizer.lr=interval(1)"], "missing a required argument"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_search_that_cannot_be_is_refused_in_two_lines(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    done = sweep(tmp_path, "tune=unet", *overrides)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "multirun").exists() or not list((tmp_path / "multirun").rglob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=train/los"], r"objective=train/los was never logged.*train/loss"),
        (["model.encoder=nosuch", "tune.max_failures=1"], r"1 trials failed .*\n.*nosuch"),
    ],
    ids=["objective", "encoder"],
)
def test_a_search_whose_trials_fail_ends_and_leaves_no_run_open(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    """In the first trial, with what is wrong; the study's MLflow run is not RUNNING for ever."""
    done = sweep(tmp_path, *SEARCH, *overrides)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("flair2-exp:")]) == 1
    assert len(table(tmp_path)) == 1
    assert [run.info.status for run in runs(tmp_path, kind="study")] == ["FINISHED"]


def found(folder: Path, trials: int, **more: Any) -> SearchResult:
    """A result over two objectives that all trials share the front of."""
    name = str(folder / "optuna.journal")
    folder.mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name="s", storage=open_storage(name), directions=["maximize", "minimize"],
        load_if_exists=True,
    )  # fmt: skip
    for number in range(trials):
        study.add_trial(
            optuna.create_trial(
                values=[float(number), float(number)],
                params={"seed": number},
                distributions={"seed": optuna.distributions.IntDistribution(0, 9)},
            )
        )
    values: dict[str, Any] = {
        "study_name": "s", "storage": name, "trials": study.trials, "objective": ("a", "b"),
        "direction": ("maximize", "minimize"), "folder": folder, "leader": True,
        "space": read_space({"seed": "range(0,10)"}, [], None),
    }  # fmt: skip
    return SearchResult(**{**values, **more})


def test_experiment_files_of_a_larger_front_are_removed(tmp_path: Path) -> None:
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        write_experiments(found(tmp_path, 3))
        smaller = found(tmp_path, 0)
        write_experiments(replace(smaller, trials=smaller.trials[:2]))
    names = {path.name for path in (tmp_path / "experiment").iterdir()}
    assert names == {"best_1.yaml", "best_2.yaml", "default.yaml"}


@pytest.mark.parametrize(
    ("direction", "files"), [("maximize", ["default", "best"]), ("minimize", ["default"])]
)
def test_a_default_that_is_the_best_is_not_compared_with_itself(
    direction: str, files: list[str], tmp_path: Path
) -> None:
    """The lowest value is that of the trial with the default's seed, 1."""
    study = found(tmp_path, 3)
    trials = [
        optuna.create_trial(value=t.values[0], params=t.params, distributions=t.distributions)
        for t in study.trials[1:]
    ]
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        assert repeated(replace(study, trials=trials, direction=(direction,))) == files


def test_the_slice_figures_names_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: drawn.setdefault(Path(path).stem, self)
    )
    study = optuna.create_study(storage=open_storage(str(tmp_path / "optuna.journal")))
    names = ("loss.label_smoothing", "optimizer.weight_decay", "utae.encoder_widths", "aug")
    for value in range(3):
        study.add_trial(
            optuna.create_trial(
                value=value,
                params=dict.fromkeys(names, value / 10),
                distributions=dict.fromkeys(names, optuna.distributions.FloatDistribution(0, 1)),
            )
        )
    result = replace(
        found(tmp_path, 0),
        study_name=study.study_name,
        objective=("loss",),
        direction=("minimize",),
    )
    write_figures(result, tmp_path)
    figure = drawn["slice"]
    figure.canvas.draw()
    shown = [axes.title for axes in figure.axes if axes.get_title()]
    boxes = sorted((title.get_window_extent() for title in shown), key=lambda box: box.x0)
    assert {title.get_text() for title in shown} == set(names)
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_the_page_answers_to_the_mouse_also_where_the_first_figure_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an exception of whatever kind costs that figure alone."""
    visualization = pytest.importorskip("optuna.visualization")
    pytest.importorskip("plotly", reason="the extra `tune-figures`")

    def broken(*_: Any, **__: Any) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr(visualization, "plot_pareto_front", broken)
    *images, page = write_figures(found(tmp_path, 4), tmp_path / "figures")
    text = page.read_text()
    assert len(text) > 1_000_000  # plotly's program
    assert "Plotly.newPlot" in text
    assert "pareto_front.png" in {path.name for path in images}


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        found: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=False)
    return {key: found[key] for key in found if key not in ("tune", "sweep", "name", "test")}


@pytest.mark.parametrize(
    "overrides",
    [
        ["tune=unet", "preset=tiny", "optimizer.lr=0.01", "aug=d4"],
        ["tune=utt", "compat=reference", "utae.heads=8", "s2_preproc=raw", "s2_preproc.size=16"],
        ["experiment=leaderboard/utt", "dataset=flair2", "dataset.root=/data", "loss=focal"],
        ["tune=accuracy_latency", "model=unet", "+loss.class_weights.water=2", "seed=7"],
        [],
    ],
    ids=" ".join,
)
def test_an_experiment_file_composes_to_the_config_that_it_was_written_from(
    overrides: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "experiment" / "best.yaml"
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        write_experiment(path, "it", overrides, "A trial.")
    again = composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=best")
    wanted = composed(*overrides)
    del again["objective"], wanted["objective"]
    assert again == wanted


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
    assert schema.best_direction(objective) == direction


@pytest.mark.parametrize(
    ("widths", "choices"),
    [
        ([64, 64, 128, 128], "choice([32,32,128,128],[64,64,128,128],[128,128,128,128])"),
        ([16, 16, 32, 32], "choice([16,16,32,32],[32,32,32,32])"),
    ],
)
def test_widths_are_searched_about_those_of_the_config(widths: list[int], choices: str) -> None:
    assert schema.widths_around(widths) == choices
