"""Experiment files of a study: they compose to what was tried."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flair2_exp.config.groups import config_folder
from flair2_exp.optuna_sweeper.results import best_trials
from flair2_exp.optuna_sweeper.space import read_space
from flair2_exp.sweeps.study_best import repeated, write_experiment, write_experiments
from tests.sweeps.studies import made_result


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=False)
    return {key: values[key] for key in values if key not in ("tune", "sweep", "name", "test")}


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
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        write_experiment(path, "it", overrides, "A trial.")
    again = composed(f"hydra.searchpath=[file://{tmp_path}]", "experiment=best")
    wanted = composed(*overrides)
    del again["objective"], wanted["objective"]
    assert again == wanted


def test_a_search_of_ones_own_may_choose_the_sampler(tmp_path: Path) -> None:
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n- /hydra/tune/search\n- _self_\n"
        "- override /hydra/sweeper/sampler: grid\n"
    )
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        place = f"hydra.searchpath=[file://{tmp_path}]"
        path = write_experiment(tmp_path / "best.yaml", "it", [place, "tune=mine", "seed=7"], "")
    assert OmegaConf.load(path).seed == 7


def test_experiment_files_of_a_larger_front_are_removed(tmp_path: Path) -> None:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        write_experiments(made_result(tmp_path, 3))
        smaller = made_result(tmp_path, 0)
        write_experiments(replace(smaller, best=smaller.best[:2]))
    names = {path.name for path in (tmp_path / "experiment").iterdir()}
    assert names == {"best_1.yaml", "best_2.yaml", "default.yaml"}


@pytest.mark.parametrize(
    ("direction", "files"), [("maximize", ["default", "best"]), ("minimize", ["default"])]
)
def test_a_default_that_is_the_best_is_not_compared_with_itself(
    direction: str, files: list[str], tmp_path: Path
) -> None:
    """The lowest value is that of the trial with the default's seed, 1."""
    result = made_result(tmp_path, 3)
    study = optuna.create_study(direction=direction)
    for trial in result.trials[1:]:
        study.add_trial(
            optuna.create_trial(
                value=trial.values[0], params=trial.params, distributions=trial.distributions
            )
        )
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        best = best_trials(study)
        assert repeated(replace(result, study=study, best=best, objective=("a",))) == files


@pytest.mark.parametrize(
    ("network", "files"), [("utt", ["default", "best"]), ("unet", ["default"])]
)
def test_a_best_that_differs_in_nothing_that_decides_is_not_compared_with_the_default(
    network: str, files: list[str], tmp_path: Path
) -> None:
    """A U-Net reads no series: whatever its super-patch, it is one experiment."""
    sizes = optuna.distributions.CategoricalDistribution([16, 24])
    study = optuna.create_study(direction="maximize")
    study.add_trial(
        optuna.create_trial(
            value=1.0, params={"s2_preproc.size": 16}, distributions={"s2_preproc.size": sizes}
        )
    )
    space = read_space({"s2_preproc.size": "choice(16,24)"}, [f"model={network}"], None)
    result = replace(
        made_result(tmp_path, 1),
        study=study,
        best=best_trials(study),
        objective=("a",),
        space=space,
    )
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        assert repeated(result) == files
