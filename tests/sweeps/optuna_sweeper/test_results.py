from __future__ import annotations

import csv
import shutil
from pathlib import Path

import optuna
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.trial import TrialState, create_trial

from flair2_exp.sweeps.optuna_sweeper import SweepError
from flair2_exp.sweeps.optuna_sweeper.results import best_trials, write_best, write_results

points = st.lists(
    st.tuples(st.integers(0, 4).map(float), st.integers(0, 4).map(float)), min_size=1, max_size=9
)


direction = st.sampled_from(["minimize", "maximize"])


@given(points, st.tuples(direction, direction))
def test_the_front_is_optunas(
    values: list[tuple[float, float]], directions: tuple[str, str]
) -> None:
    study = optuna.create_study(directions=directions)
    study.add_trials([create_trial(values=pair) for pair in values])
    study.add_trial(create_trial(state=TrialState.FAIL))
    found = sorted(trial.number for trial in best_trials(study.trials, directions))
    assert found == sorted(trial.number for trial in study.best_trials)


@given(st.lists(st.integers(0, 9).map(float)), direction)
def test_the_best_is_optunas(values: list[float], direction: str) -> None:
    study = optuna.create_study(direction=direction)
    study.add_trials([create_trial(value=value) for value in values])
    study.add_trial(
        create_trial(state=TrialState.PRUNED, value=-99.0 if direction == "minimize" else 99.0)
    )
    best = best_trials(study.trials, [direction])
    assert [t.number for t in best] == ([study.best_trial.number] if values else [])


def test_the_table_has_every_trial_with_its_state(tmp_path: Path) -> None:
    uniform = optuna.distributions.FloatDistribution(0, 1)
    trials = [
        create_trial(value=0.5, params={"lr": 0.25}, distributions={"lr": uniform}),
        create_trial(state=TrialState.FAIL, user_attrs={"failure": "ValueError: a, b"}),
        create_trial(state=TrialState.FAIL, user_attrs={"lost": True, "failure": "died"}),
        create_trial(state=TrialState.PRUNED, intermediate_values={0: 1.0, 1: 2.0}),
    ]
    write_results(tmp_path, "s", trials, ["minimize"])
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete", "fail", "lost", "pruned"]
    assert [row["lr"] for row in rows] == ["0.25", "", "", ""]
    assert rows[1]["failure"] == "ValueError: a, b"
    assert rows[3]["steps"] == "2"
    results = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    assert results == {
        "name": "optuna",
        "study": "s",
        "best_params": {"lr": 0.25},
        "best_value": 0.5,
        "best_trial": -1,
    }
    assert not list(tmp_path.glob(".*"))


CONF = {
    "config.yaml": "defaults: [{model: unet}, {loss@head: ce}, _self_]\nlr: 1.0\nbands: [a]\n"
    "options: {}\nname: x\n",
    "model/unet.yaml": "width: 1\nencoder: {name: r34, depth: 5}\n",
    "model/utt.yaml": "width: 2\nencoder: {name: r50, depth: 5}\n",
    "loss/ce.yaml": "kind: ce\n",
    "loss/dice.yaml": "kind: dice\n",
    "extra/on.yaml": "enabled: true\n",
    "base/small.yaml": "# @package _global_\nlr: 7.0\n",
}


def test_the_best_as_a_file_composes_to_the_trials_config(tmp_path: Path) -> None:
    for name, text in CONF.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    overrides = [
        "model=utt",
        "loss@head=dice",
        "+extra=on",
        "lr=0.001",
        "model.encoder.depth=3",
        "bands=[b,c]",
        "+options.momentum=0.9",
        "name='1'",
    ]
    groups = {"model", "loss@head", "extra"}
    write_best(
        tmp_path / "experiment" / "best.yaml", overrides, groups, comment="Trial 7.\nScore 0.5."
    )
    text = (tmp_path / "experiment" / "best.yaml").read_text()
    assert text.startswith("# @package _global_\n# Trial 7.\n# Score 0.5.\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        expected = compose("config", overrides)
        found = compose("config", ["+experiment=best"])
    assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)

    write_best(tmp_path / "experiment" / "best.yaml", ["name=y"], (), defaults=["/base/small"])
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        found = compose("config", ["+experiment=best"])
    assert (found.lr, found.name) == (7.0, "y")
    shutil.rmtree(tmp_path / "experiment")


@pytest.mark.parametrize("override", ["~model", "lr=1,2"])
def test_what_a_file_cannot_say_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(SweepError, match="cannot be written"):
        write_best(tmp_path / "best.yaml", [override], ())
