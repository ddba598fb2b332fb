from __future__ import annotations

import csv
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from flair2_exp.optuna_sweeper.results import (
    SearchResult,
    best_trials,
    write_results,
    write_table,
)
from flair2_exp.optuna_sweeper.space import Space

points = st.lists(
    st.tuples(st.integers(0, 4).map(float), st.integers(0, 4).map(float)), min_size=1, max_size=9
)


direction = st.sampled_from(["minimize", "maximize"])


@given(points, st.tuples(direction, direction))
def test_the_front_holds_what_no_trial_beats_by_the_first_objective(
    values: list[tuple[float, float]], directions: tuple[str, str]
) -> None:
    study = optuna.create_study(directions=directions)
    study.add_trials([create_trial(values=pair) for pair in values])
    study.add_trial(create_trial(state=TrialState.FAIL))
    signs = [1 if direction == "minimize" else -1 for direction in directions]
    costs = [tuple(s * v for s, v in zip(signs, pair, strict=True)) for pair in values]
    front = [
        (cost, number)
        for number, cost in enumerate(costs)
        if not any(o != cost and o[0] <= cost[0] and o[1] <= cost[1] for o in costs)
    ]
    assert [trial.number for trial in best_trials(study)] == [n for _, n in sorted(front)]


@given(st.lists(st.integers(0, 9).map(float)), direction)
def test_the_best_is_optunas(values: list[float], direction: str) -> None:
    study = optuna.create_study(direction=direction)
    study.add_trials([create_trial(value=value) for value in values])
    study.add_trial(
        create_trial(state=TrialState.PRUNED, value=-99.0 if direction == "minimize" else 99.0)
    )
    best = best_trials(study)
    assert [t.number for t in best] == ([study.best_trial.number] if values else [])


def test_the_table_has_every_trial_with_its_state(tmp_path: Path) -> None:
    uniform = optuna.distributions.FloatDistribution(0, 1)
    trials = [
        create_trial(value=0.5, params={"lr": 0.25}, distributions={"lr": uniform}),
        create_trial(state=TrialState.FAIL, user_attrs={"failure": "ValueError: a, b"}),
        create_trial(state=TrialState.FAIL, user_attrs={"lost": True, "failure": "died"}),
        create_trial(state=TrialState.PRUNED, intermediate_values={0: 1.0, 1: 2.0}),
    ]
    study = optuna.create_study(study_name="s")
    study.add_trials(trials)
    best = best_trials(study)
    write_results(SearchResult(study, study.trials, best, (), tmp_path, Space({}), False))
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
        "best_trial": 0,
    }
    assert not list(tmp_path.glob(".*"))


def test_workers_of_two_machines_whose_processes_have_one_number_write_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "trials.csv", Path.replace

    def overtaken(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        write_table(path, [], 1)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", overtaken)
    write_table(path, [create_trial(value=0.5)], 1)
    assert len(path.read_text().splitlines()) == 2
    assert list(tmp_path.iterdir()) == [path]
