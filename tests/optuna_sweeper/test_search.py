from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hydra.core.utils import JobReturn
from hypothesis import given
from hypothesis import strategies as st

from flair2_exp.optuna_sweeper import SweepError, plugin
from flair2_exp.optuna_sweeper.outcome import read_values
from flair2_exp.optuna_sweeper.process import Process
from flair2_exp.optuna_sweeper.results import SearchResult
from flair2_exp.optuna_sweeper.storage import open_storage
from flair2_exp.optuna_sweeper.trial import TrialPruned, UnknownObjective, current_trial
from tests.optuna_sweeper.toy import (
    ELSEWHERE,
    GRID,
    Launcher,
    make_search,
    run_search,
    states,
    trials_of,
)

MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2}
TPE = {"_target_": "optuna.samplers.TPESampler", "seed": 1, "constant_liar": True}


def parabola(config: dict[str, Any]) -> float:
    return float((config["x"] - 0.3) ** 2)


def test_a_search_finds_the_minimum_and_writes_it_down(tmp_path: Path) -> None:
    trials = run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=40, sampler=TPE)
    assert states(trials) == ["COMPLETE"] * 40
    best = min(trials, key=lambda t: t.values[0])
    assert best.values[0] < 1e-3
    results = (tmp_path / "optimization_results.yaml").read_text()
    assert f"best_value: {best.values[0]}" in results
    table = (tmp_path / "trials.csv").read_text().splitlines()
    assert len(table) == 41
    assert table[0].split(",")[:3] == ["number", "state", "value"]


def test_the_same_seed_draws_the_same_values(tmp_path: Path) -> None:
    drawn = [
        [t.params["x"] for t in run_search(tmp_path / n, parabola, "x=interval(0,1)", n_trials=15)]
        for n in "ab"
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 15


def test_the_total_counts_finished_trials_and_more_is_more(tmp_path: Path) -> None:
    first = run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=5)
    again = run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=5)
    more = run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=8)
    assert [t.params for t in again] == [t.params for t in first]
    assert [t.params for t in more[:5]] == [t.params for t in first]
    assert len({t.params["x"] for t in more}) == 8


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_pruning_honours_the_direction(tmp_path: Path, direction: str) -> None:
    """Of trials that are good, bad or in between, the bad ones are stopped, whichever way it is."""
    sign = 1.0 if direction == "maximize" else -1.0

    def task(config: dict[str, Any]) -> float:
        trial = current_trial()
        assert trial is not None
        for step in range(1, 5):
            if trial.report(sign * config["x"], step):
                assert trial.should_prune()
                return math.nan  # what a stopped job returns is not looked at
        return sign * float(config["x"])

    # The first two set the median (5), then come better and worse ones in turn.
    points = [{"x": x} for x in (4, 6, 9, 1, 8, 2)]
    trials = run_search(
        tmp_path,
        task,
        "x=range(0,10)",
        n_trials=6,
        first=points,
        direction=direction,
        pruner=MEDIAN,
    )
    pruned = [t.params["x"] for t in trials if t.state.name == "PRUNED"]
    assert pruned == [1, 2]
    stopped = next(t for t in trials if t.params["x"] == 1)
    assert stopped.intermediate_values == {1: sign}
    assert stopped.user_attrs["pruned_at"] == 1


def test_a_job_that_raises_pruned_is_pruned(tmp_path: Path) -> None:
    def task(config: dict[str, Any]) -> float:
        if config["x"] > 0.5:
            raise TrialPruned if config["x"] > 0.75 else optuna.TrialPruned
        return 1.0

    trials = run_search(tmp_path, task, "x=interval(0,1)", n_trials=8)
    for trial in trials:
        assert trial.state.name == ("PRUNED" if trial.params["x"] > 0.5 else "COMPLETE")


def test_a_search_that_prunes_every_trial_ends_as_any_other(tmp_path: Path) -> None:
    def task(_: dict[str, Any]) -> float:
        raise TrialPruned

    assert states(run_search(tmp_path, task, "x=interval(0,1)", n_trials=2)) == ["PRUNED"] * 2


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (None, "no value"),
        ("0.5", "no number"),
        (True, "no number"),
        ([0.1, 0.2], "2 values for 1"),
        (np.zeros(3), "no number"),
        ({"loss": 1.0}, "name the objective"),
        (RuntimeError("out of\nmemory"), "RuntimeError: out of memory"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_what_is_no_number_is_a_failed_trial(tmp_path: Path, returned: Any, reason: str) -> None:
    def task(config: dict[str, Any]) -> Any:
        if config["x"] != 1:
            return 0.5
        if isinstance(returned, BaseException):
            raise returned
        return returned

    # Each point once; x=1 fails and is neither a value nor repeated.
    trials = run_search(tmp_path, task, "x=range(0,3)", sampler=GRID)
    assert states(trials) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert reason in trials[1].user_attrs["failure"]
    assert trials[1].values is None


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([float, np.float64]))
def test_any_finite_number_is_a_value(value: float, kind: Any) -> None:
    assert read_values(kind(value), (), 1) == [value]
    assert read_values(np.array([value]), (), 1) == [value]
    assert read_values({"a": 1, "b": kind(value)}, ("b", "a"), 2) == [value, 1.0]


def test_an_objective_that_is_never_logged_ends_the_search_with_the_names(tmp_path: Path) -> None:
    evaluated = []

    def task(config: dict[str, Any]) -> dict[str, float]:
        evaluated.append(config["x"])
        return {"val/miou": 0.5, "val/loss": 1.0}

    with pytest.raises(SweepError, match=r"did you mean val/miou\?\): val/miou, val/loss"):
        run_search(tmp_path, task, "x=interval(0,1)", objective="val/moiu", n_trials=9)
    assert len(evaluated) == 1


def test_a_mistyped_objective_does_not_stand_in_the_way_of_the_right_one(tmp_path: Path) -> None:
    """Also where its direction was another one; the tracking parent stays the same."""

    def task(config: dict[str, Any]) -> dict[str, float]:
        return {"val/miou": config["x"]}

    options: dict[str, Any] = {"n_trials": 2, "on_create": f"{__name__}.make_parent"}
    parents.clear()
    with pytest.raises(SweepError, match="did you mean val/miou"):
        run_search(tmp_path, task, "x=interval(0,1)", objective="val/moiu", **options)
    options |= {"objective": "val/miou", "direction": "maximize"}
    trials = run_search(tmp_path, task, "x=interval(0,1)", **options)
    assert states(trials) == ["COMPLETE"] * 2
    assert parents == ["parent"]
    study = optuna.load_study(
        study_name="toy", storage=open_storage(str(tmp_path / "optuna.journal"))
    )
    assert study.user_attrs["parent"] == "parent"
    with pytest.raises(SweepError, match="objective was val/miou, now val/moiu"):
        run_search(tmp_path, task, "x=interval(0,1)", objective="val/moiu", n_trials=3)


parents: list[str] = []


def make_parent(config: Any) -> dict[str, Any]:
    parents.append("parent")
    return {"parent": "parent"}


class Unmeasured(ValueError):
    """Of a job that knows nothing of the sweeper."""

    unknown_objective = True


@pytest.mark.parametrize("error", [Unmeasured("no such score"), UnknownObjective("no such score")])
def test_a_job_says_that_an_objective_does_not_exist(tmp_path: Path, error: Exception) -> None:
    def task(config: dict[str, Any]) -> float:
        raise error

    with pytest.raises(SweepError, match=r"^no such score$"):
        run_search(tmp_path, task, "x=interval(0,1)", n_trials=9)


def test_what_cannot_be_searched_is_refused_by_every_worker_before_the_study(
    tmp_path: Path,
) -> None:
    with pytest.raises(SweepError, match="not on this machine"):
        run_search(tmp_path, parabola, "x=interval(0,1)", on_start=f"{__name__}.refuse")
    assert not list(tmp_path.iterdir())


def refuse(config: Any) -> None:
    raise SweepError(f"not on this machine: {config.hydra.job.name}")


def test_too_many_failures_end_the_search_and_are_listed(tmp_path: Path) -> None:
    def task(config: dict[str, Any]) -> float:
        raise ValueError(f"no good {config['x']:.3f}")

    with pytest.raises(SweepError, match="3 trials failed") as caught:
        run_search(tmp_path, task, "x=interval(0,1)", n_trials=9, max_failures=3)
    assert str(caught.value).count("ValueError: no good") == 3
    trials = run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=4, max_failures=3)
    assert states(trials) == ["FAIL"] * 3 + ["COMPLETE"] * 4  # the mended job goes on


def test_a_failed_trial_is_made_good_by_another(tmp_path: Path) -> None:
    def task(config: dict[str, Any]) -> float:
        if config["x"] > 0.8:
            raise ValueError("too large")
        return 0.0

    trials = run_search(tmp_path, task, "x=interval(0,1)", n_trials=10, max_failures=None)
    names = states(trials)
    assert names.count("COMPLETE") == 10
    assert names.count("FAIL") == sum(t.params["x"] > 0.8 for t in trials) > 0


@pytest.mark.parametrize("name", ["test/miou", ["val/miou", "test/loss"]])
def test_a_test_score_is_no_objective(tmp_path: Path, name: Any) -> None:
    with pytest.raises(SweepError, match=r"objective test/\w+ is refused .*validation metric"):
        make_search(tmp_path, parabola, "x=1,2", objective=name)
    make_search(tmp_path, parabola, "x=1,2", objective=name, forbidden_objectives=[])


def test_several_objectives_keep_the_front(tmp_path: Path) -> None:
    def task(config: dict[str, Any]) -> list[float]:
        trial = current_trial()
        assert trial is not None
        assert trial.report(1.0, 1) is False  # there is no pruning over several objectives
        return [config["x"], config["x"] ** 2 if config["x"] < 5 else 100]

    options = {"objective": ["gain", "cost"], "direction": ["maximize", "minimize"]}
    trials = run_search(tmp_path, task, "x=range(0,8)", sampler=GRID, **options)
    assert states(trials) == ["COMPLETE"] * 8
    results = (tmp_path / "optimization_results.yaml").read_text()
    # 0…4 trade gain for cost; of 5, 6, 7, which cost the same, only 7 is worth it.
    assert sorted(int(line.split()[-1]) for line in results.splitlines() if " x: " in line) == [
        0, 1, 2, 3, 4, 7,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "arguments", "difference"),
    [
        ({}, ["x=interval(0,2)"], r"x was interval\(0.0,1.0\), now interval\(0.0,2.0\)"),
        ({}, ["x=interval(0,1)", "y=1,2"], r"y was not given, now choice\(1,2\)"),
        ({}, ["x=interval(0,1)", "epochs=5"], "epochs was not given, now 5"),
        ({"direction": "maximize"}, ["x=interval(0,1)"], "direction was minimize, now maximize"),
        ({"objective": "loss"}, ["x=interval(0,1)"], "objective was none, now loss"),
    ],
)
def test_another_search_is_refused_or_opened_anew(
    tmp_path: Path, change: dict[str, Any], arguments: list[str], difference: str
) -> None:
    run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=2)
    with pytest.raises(SweepError, match=difference):
        run_search(tmp_path, parabola, *arguments, n_trials=3, **change)
    for n_trials in (3, 4):
        make_search(
            tmp_path, parabola, *arguments, n_trials=n_trials, on_change="new_study", **change
        ).run()
    assert len(trials_of(str(tmp_path / "optuna.journal"), "toy")) == 2
    assert len(trials_of(str(tmp_path / "optuna.journal"), "toy-2")) == 4


facts: dict[str, Any] = {}


def state_facts(config: Any) -> dict[str, Any]:
    return dict(facts)


def search_with(folder: Path, n_trials: int, **now: Any) -> list[optuna.trial.FrozenTrial]:
    """Search where `on_start` returns these facts."""
    facts.clear()
    facts.update(now)
    hook = f"{__name__}.state_facts"
    return run_search(folder, parabola, "x=interval(0,1)", n_trials=n_trials, on_start=hook)


def test_a_study_keeps_the_facts_that_it_was_made_on(tmp_path: Path) -> None:
    """Such as the data: its best across two of them would mean nothing."""
    search_with(tmp_path, 2, data="first", machine=1)
    trials = search_with(tmp_path, 3, data="first")
    with pytest.raises(SweepError, match="toy is another search: data was first, now second"):
        search_with(tmp_path, 4, data="second")
    assert trials_of(str(tmp_path / "optuna.journal"), "toy") == trials
    assert len(search_with(tmp_path, 4, other="unknown before")) == 4


@pytest.mark.parametrize(
    ("sweeper", "fix"),
    [
        ({}, "another hydra.sweeper.study_name, or hydra.sweeper.on_change=new_study"),
        (
            {"study_name": "${tune.name}", "on_change": "${tune.on_change}"},
            "another tune.name, or tune.on_change=new_study",
        ),
    ],
)
def test_the_refusal_says_what_to_type_in_the_applications_own_words(
    tmp_path: Path, sweeper: dict[str, str], fix: str
) -> None:
    run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=1)
    search = make_search(tmp_path, parabola, "x=interval(0,2)", n_trials=2)
    search.config.hydra.sweeper = sweeper
    with pytest.raises(SweepError, match=fix):
        search.run()


def may_change(key: str) -> bool:
    return key != "epochs"


@pytest.mark.parametrize("allowed", [["tracking.*", "n_trials"], f"{__name__}.may_change"])
def test_an_override_that_may_change_does_not_matter(tmp_path: Path, allowed: Any) -> None:
    options = {"may_change": allowed}
    run_search(tmp_path, parabola, "x=interval(0,1)", "tracking.uri=a", n_trials=2, **options)
    arguments = ["x=interval(0,1)", "tracking.uri=b", "n_trials=3"]
    assert len(run_search(tmp_path, parabola, *arguments, n_trials=3, **options)) == 3
    with pytest.raises(SweepError, match="epochs was not given, now 5"):
        run_search(tmp_path, parabola, *arguments, "epochs=5", n_trials=4, **options)


def test_a_grid_evaluates_each_point_once(tmp_path: Path) -> None:
    seeded = {**GRID, "seed": 5}
    trials = run_search(tmp_path, parabola, "x=range(0,4)", "y=a,b", sampler=seeded, n_trials=99)
    points = [(t.params["x"], t.params["y"]) for t in trials]
    assert sorted(points) == [(x, y) for x in range(4) for y in "ab"]
    assert points != sorted(points)
    unseeded = run_search(tmp_path / "b", parabola, "x=range(0,4)", sampler=GRID, n_trials=3)
    assert [t.params["x"] for t in unseeded[:3]] == [0, 1, 2]
    assert states(unseeded) == ["COMPLETE"] * 3 + ["WAITING"]


def test_a_grids_failed_points_are_tried_again_by_the_next_command(tmp_path: Path) -> None:
    calls: list[int] = []

    def task(config: dict[str, Any]) -> float:
        calls.append(config["x"])
        if config["x"] == 1 and calls.count(1) < 3:
            raise ValueError("not yet")
        return 0.0

    for _ in range(4):
        trials = run_search(tmp_path, task, "x=range(0,3)", sampler=GRID)
    assert calls == [0, 1, 2, 1, 1]
    assert states(trials) == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]


def test_given_points_come_first(tmp_path: Path) -> None:
    first = [{"x": 0.25, "model": "unet"}, {"x": 0.5, "model": "b c"}]
    arguments = ["x=interval(0,1)", "model=unet,'b c'"]
    trials = run_search(tmp_path, parabola, *arguments, first=first, n_trials=4)
    assert [t.params["x"] for t in trials[:2]] == [0.25, 0.5]
    assert [t.params["model"] for t in trials[:2]] == ["unet", r"b\ c"]
    with pytest.raises(SweepError, match="x=3 is none of interval"):
        make_search(tmp_path, parabola, *arguments, first=[{"x": 3}])
    with pytest.raises(SweepError, match="z is not swept; expected one of x, model"):
        make_search(tmp_path, parabola, *arguments, first=[{"z": 3}])


def test_a_given_point_leaves_out_what_the_command_line_fixes(tmp_path: Path) -> None:
    arguments, first = ["x=interval(0,1)", "model=utt"], [{"x": 0.25, "model": "unet"}]
    trials = run_search(tmp_path, parabola, *arguments, first=first, n_trials=2)
    assert trials[0].params == {"x": 0.25}


class DyingLauncher(Launcher):
    """Its first job takes the launcher with it."""

    def launch(self, overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        if initial_job_idx == 0:
            raise RuntimeError("a worker was killed")
        return super().launch(overrides, initial_job_idx)


def test_a_retried_trial_runs_in_the_folder_of_its_first_attempt(tmp_path: Path) -> None:
    launcher = DyingLauncher(parabola)
    trials = run_search(tmp_path, parabola, "x=interval(0,1)", launcher=launcher, n_trials=1)
    assert [t.user_attrs.get("retry_of") for t in trials] == [None, 0]
    assert launcher.folders == ["run_0"]


def test_a_study_opened_beside_another_has_a_folder_of_its_own(tmp_path: Path) -> None:
    launcher = Launcher(parabola)
    run_search(tmp_path, parabola, "x=interval(0,1)", launcher=launcher, n_trials=1)
    options: dict[str, Any] = {"on_change": "new_study", "launcher": launcher, "n_trials": 1}
    run_search(tmp_path, parabola, "x=interval(0,2)", **options)
    assert launcher.folders == ["toy-2/run_0"]


def test_a_study_opened_beside_another_leaves_its_results_alone(tmp_path: Path) -> None:
    run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=1)
    first = (tmp_path / "optimization_results.yaml").read_text()
    finished.clear()
    options: dict[str, Any] = {"on_change": "new_study", "on_finish": f"{__name__}.note"}
    run_search(tmp_path, parabola, "x=interval(0,2)", n_trials=2, **options)
    assert (tmp_path / "optimization_results.yaml").read_text() == first
    assert "study: toy-2" in (tmp_path / "toy-2" / "optimization_results.yaml").read_text()
    assert [result.folder for result in finished] == [tmp_path / "toy-2"]


finished: list[SearchResult] = []


def note(result: SearchResult, config: Any) -> None:
    finished.append(result)


def finish_inside(result: SearchResult, config: Any) -> None:
    """While one leads, the same command is started again and finds the study complete."""
    finished.append(result)
    options: dict[str, Any] = {"on_finish": f"{__name__}.note", "n_trials": 2}
    run_search(result.folder, parabola, "x=interval(0,1)", **options)


def test_of_several_workers_at_the_end_one_leads(tmp_path: Path) -> None:
    finished.clear()
    options: dict[str, Any] = {"on_finish": f"{__name__}.finish_inside", "n_trials": 2}
    run_search(tmp_path, parabola, "x=interval(0,1)", **options)
    options["on_finish"] = f"{__name__}.note"
    run_search(tmp_path, parabola, "x=interval(0,1)", **options)
    assert [result.leader for result in finished] == [True, False, True]


def test_a_worker_that_got_no_trial_does_not_lead(tmp_path: Path) -> None:
    """It came when the last trial ran already, elsewhere, and saw it end."""
    finished.clear()
    storage = str(tmp_path / "optuna.journal")
    options: dict[str, Any] = {"n_trials": 1, "storage": storage}
    options["on_finish"] = f"{__name__}.note"
    started = threading.Event()

    def task(config: dict[str, Any]) -> float:
        started.set()
        time.sleep(0.5)
        return parabola(config)

    first = make_search(tmp_path, task, "x=interval(0,1)", **options)
    second = make_search(tmp_path / "other", task, "x=interval(0,1)", **options)
    thread = threading.Thread(target=first.run)
    thread.start()
    assert started.wait(30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Process, "this", lambda: Process.of_plain(ELSEWHERE))
        second.run()
    thread.join()
    assert sorted(result.leader for result in finished) == [False, True]


def conditional(config: Any, trial: optuna.Trial) -> None:
    """A conditional space: momentum is there for one optimizer alone."""
    assert config.hydra.job.name == "toy"  # the command's config, as the published sweeper gives it
    if trial.params["optimizer"] == "sgd":
        trial.suggest_float("+momentum", 0.5, 0.9)


def test_a_function_adds_conditional_values(tmp_path: Path) -> None:
    seen = []

    def task(config: dict[str, Any]) -> float:
        seen.append(config)
        return 0.0

    options = {"custom_search_space": f"{__name__}.conditional", "n_trials": 8}
    run_search(tmp_path, task, "optimizer=sgd,adam", **options)
    assert {config["optimizer"] for config in seen} == {"sgd", "adam"}
    for config in seen:
        assert ("+momentum" in config) == (config["optimizer"] == "sgd")
    with pytest.raises(SweepError, match="cannot be imported"):
        make_search(tmp_path, task, "a=1,2", custom_search_space="nowhere.f")
    with pytest.raises(SweepError, match="a grid has no custom_search_space"):
        make_search(tmp_path, task, "a=1,2", sampler=GRID, **options)


def test_parallel_jobs_keep_the_total_and_have_folders_of_their_own(tmp_path: Path) -> None:
    launcher = Launcher(parabola)
    options = {"n_trials": 10, "n_jobs": 4, "launcher": launcher}
    trials = run_search(tmp_path, parabola, "x=interval(0,1)", **options)
    assert states(trials) == ["COMPLETE"] * 10
    assert launcher.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert launcher.folders == []  # Hydra's own numbers will do


def intrude(config: Any, trial: optuna.Trial) -> None:
    """While this worker draws its first trial, another one runs one."""
    if trial.number == 0:
        trial.study.add_trial(optuna.create_trial(value=1.0))


def test_parallel_jobs_of_two_workers_never_share_a_folder(tmp_path: Path) -> None:
    launcher = Launcher(parabola)
    options = {"n_trials": 4, "n_jobs": 2, "custom_search_space": f"{__name__}.intrude"}
    run_search(tmp_path, parabola, "x=interval(0,1)", launcher=launcher, **options)
    assert launcher.folders == ["run_0", "run_2"]
    assert launcher.batches[1] == [3]


created: list[str] = []


def create(config: Any) -> dict[str, str]:
    created.append(config.hydra.job.name)
    return {"parent": f"run{len(created)}"}


def test_hooks_run_when_the_study_is_made_and_when_the_search_ends(tmp_path: Path) -> None:
    parents = []

    def task(config: dict[str, Any]) -> float:
        trial = current_trial()
        assert trial is not None
        parents.append(trial.study_attributes["parent"])
        return parabola(config)

    created.clear()
    finished.clear()
    hooks = {"on_create": f"{__name__}.create", "on_finish": f"{__name__}.note"}
    for n_trials in (2, 3, 3):
        run_search(tmp_path, task, "x=interval(0,1)", "epochs=5", n_trials=n_trials, **hooks)
    assert created == ["toy"]
    assert parents == ["run1"] * 3
    assert [len(result.trials) for result in finished] == [2, 3, 3]
    assert all(result.leader for result in finished)
    best = finished[-1].best[0]
    assert finished[-1].space.overrides(best.params) == [f"x={best.params['x']}", "epochs=5"]


def test_a_launcher_that_breaks_costs_one_try(tmp_path: Path) -> None:
    options = {"n_trials": 5, "n_jobs": 2, "launcher": DyingLauncher(parabola)}
    trials = run_search(tmp_path, parabola, "x=interval(0,1)", **options)
    assert states(trials) == ["FAIL"] * 2 + ["COMPLETE"] * 5
    assert [t.params for t in trials[2:4]] == [t.params for t in trials[:2]]
    assert all("lost" in t.user_attrs for t in trials[:2])


def test_what_kills_a_launcher_twice_takes_no_other_trial_with_it(tmp_path: Path) -> None:
    class Deadly(Launcher):
        def launch(self, overrides: Any, initial_job_idx: int) -> Any:
            if any("x=2" in texts for texts in overrides):
                raise RuntimeError("A worker process managed by the executor was terminated")
            return super().launch(overrides, initial_job_idx)

    options = {"sampler": GRID, "n_jobs": 3, "launcher": Deadly(parabola)}
    trials = run_search(tmp_path, parabola, "x=1,2,3,4,5", **options)
    done = {trial.params["x"] for trial in trials if trial.state.name == "COMPLETE"}
    assert done == {1, 3, 4, 5}


@pytest.mark.parametrize(
    ("tries", "then"), [(1, "tried again"), (2, "tried again"), (3, "not tried again")]
)
def test_of_a_dead_trial_it_is_said_what_becomes_of_it(
    tries: int, then: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=1)
    opened = optuna.load_study(
        study_name="toy", storage=open_storage(str(tmp_path / "optuna.journal"))
    )
    (done,) = opened.trials
    dead = {"worker": {**Process.this().plain(), "start": "1"}, "tries": tries}
    running = optuna.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params=done.params,
        distributions=done.distributions,
        user_attrs=dead,
    )
    opened.add_trial(running)
    trials = run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=2)
    assert f"Trial 1: its process died; it is closed and {then}" in caplog.text
    assert (trials[2].params == done.params) == (tries < 3)


def test_an_interrupted_trial_is_tried_again_by_the_next_command(tmp_path: Path) -> None:
    calls = []

    def task(config: dict[str, Any]) -> float:
        calls.append(config["x"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return parabola(config)

    with pytest.raises(KeyboardInterrupt) as interrupt:
        run_search(tmp_path, task, "x=interval(0,1)", n_trials=6)
    (note,) = interrupt.value.__notes__
    assert note == "2 of 6 trials finished; the same command resumes the search"
    assert (tmp_path / "trials.csv").exists()
    trials = run_search(tmp_path, task, "x=interval(0,1)", n_trials=6)
    assert sorted(states(trials)) == ["COMPLETE"] * 6 + ["FAIL"]
    assert calls[3] == calls[2]
    assert len(set(calls)) == 6


def exit_after_ctrl_c() -> None:
    """As Lightning does: the interrupt is caught, and the process told to end."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def terminated() -> None:
    raise SystemExit(128 + signal.SIGTERM)


@pytest.mark.parametrize(
    ("end", "told"), [(exit_after_ctrl_c, KeyboardInterrupt), (terminated, SystemExit)]
)
def test_a_job_that_was_asked_to_end_ends_the_search_and_is_tried_again(
    tmp_path: Path, end: Callable[[], None], told: type[BaseException]
) -> None:
    """However often: that somebody stopped it says nothing of its parameters."""
    calls = []

    def task(config: dict[str, Any]) -> float:
        calls.append(config["x"])
        if len(calls) in (2, 3, 4):
            end()
        return parabola(config)

    for _ in range(3):
        with pytest.raises(told):
            run_search(tmp_path, task, "x=interval(0,1)", n_trials=3, max_failures=1)
    launcher = Launcher(task)
    options: dict[str, Any] = {"n_trials": 3, "max_failures": 1, "launcher": launcher}
    trials = run_search(tmp_path, task, "x=interval(0,1)", **options)
    assert states(trials) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert calls[1] == calls[2] == calls[3] == calls[4]
    assert launcher.folders[0] == "run_1"


def break_second(config: Any, trial: optuna.Trial) -> None:
    if trial.number == 1:
        raise LookupError("a mistake in a function of the user's")


def test_a_trial_that_cannot_be_drawn_leaves_none_of_its_batch_running(tmp_path: Path) -> None:
    options = {"n_trials": 4, "n_jobs": 3, "custom_search_space": f"{__name__}.break_second"}
    with pytest.raises(LookupError):
        run_search(tmp_path, parabola, "x=interval(0,1)", **options)
    trials = trials_of(str(tmp_path / "optuna.journal"), "toy")
    assert "RUNNING" not in states(trials)


def test_a_storage_that_goes_away_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise optuna.exceptions.StorageInternalError("server closed the connection")

    def task(config: dict[str, Any]) -> float:
        monkeypatch.setattr(optuna.storages.JournalStorage, "get_all_trials", gone)
        return parabola(config)

    with pytest.raises(SweepError, match="journal: server closed the connection") as caught:
        run_search(tmp_path, task, "x=interval(0,1)", n_trials=3)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("given", [{}, {"n_warmup_steps": 0}, {"n_warmup_steps": 2}], ids=str)
def test_so_many_steps_are_never_pruned(tmp_path: Path, given: dict[str, int]) -> None:
    def task(config: dict[str, Any]) -> float:
        trial = current_trial()
        assert trial is not None
        return float(any(trial.report(9.0, step) for step in (1, 2, 3, 4)))

    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "upper": 1.0, **given}
    (trial,) = run_search(tmp_path, task, "x=interval(0,1)", n_trials=1, pruner=pruner)
    assert (trial.state.name, trial.last_step) == ("PRUNED", given.get("n_warmup_steps", 0) + 1)


PATIENT = {"_target_": "optuna.pruners.PatientPruner", "patience": 0}


def test_a_pruner_may_stand_around_another(tmp_path: Path) -> None:
    def task(config: dict[str, Any]) -> float:
        trial = current_trial()
        assert trial is not None
        if any(trial.report(float(step), step) for step in (1, 2, 3)):  # worse at each step
            raise TrialPruned
        return 2.0

    inner = {"_target_": "optuna.pruners.ThresholdPruner", "upper": 2.5}
    pruner = {**PATIENT, "wrapped_pruner": inner}
    (trial,) = run_search(tmp_path, task, "x=interval(0,1)", n_trials=1, pruner=pruner)
    assert (trial.state.name, trial.last_step) == ("PRUNED", 3)


def test_a_sampler_may_have_parts(tmp_path: Path) -> None:
    crossover = {"_target_": "optuna.samplers.nsgaii.UniformCrossover"}
    name = "optuna.samplers.NSGAIISampler"
    sampler = {"_target_": name, "seed": 1, "population_size": 2, "crossover": crossover}
    trials = run_search(tmp_path, parabola, "x=interval(0,1)", n_trials=6, sampler=sampler)
    assert states(trials) == ["COMPLETE"] * 6


def test_an_empty_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="the search space is empty"):
        make_search(tmp_path, parabola, "x=1", n_trials=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": {"_target_": "optuna.samplers.TPESample"}}, r"did you mean .*TPESampler\?"),
        (
            {"sampler": {"_target_": "os.system"}},
            "to use it, add its package to hydra.sweeper.allowed_targets",
        ),
        ({"sampler": {"_target_": "optuna.samplers.TPESampler", "sed": 1}}, "unexpected keyword"),
        ({"sampler": {"_target_": "optuna.pruners.NopPruner"}}, "not of optuna.samplers"),
        ({"sampler": {}}, "names no class"),
        ({"pruner": {"_target_": "optuna.pruners.MeanPruner"}}, r"MedianPruner\?"),
        ({"pruner": {**PATIENT, "wrapped_pruner": {"_target_": "os.system"}}}, "allowed_targets"),
        ({"n_trials": 0}, "at least 1"),
        ({"direction": "up"}, "expected minimize or maximize"),
        ({"direction": ["minimize"], "objective": ["a", "b"]}, "1 directions for 2 objectives"),
        ({"on_change": "ask"}, "expected refuse or new_study"),
        ({"poll": 0}, "more than 0 seconds"),
        ({"objective": [1]}, "expected a name"),
        ({"first": [1]}, "expected mappings"),
        ({"may_change": 1}, "expected a list of patterns"),
    ],
)
def test_bad_options_are_told_in_two_lines(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SweepError, match=message) as caught:
        make_search(tmp_path, parabola, "x=1,2", **options)
    assert len(str(caught.value).splitlines()) <= 2


class OwnSampler(optuna.samplers.RandomSampler):
    """A sampler of the user's."""


def test_a_sampler_of_ones_own_needs_its_package_allowed(tmp_path: Path) -> None:
    options = {"sampler": {"_target_": f"{__name__}.OwnSampler"}, "n_trials": 2}
    with pytest.raises(SweepError, match="allowed_targets"):
        make_search(tmp_path, parabola, "x=interval(0,1)", **options)
    options["allowed_targets"] = ["tests.optuna_sweeper"]
    assert len(run_search(tmp_path, parabola, "x=interval(0,1)", **options)) == 2


@pytest.mark.parametrize("version", ["3.6.1", "6.0.0", None])
def test_another_optuna_is_refused(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def find(_: str) -> str:
        if version is None:
            raise plugin.importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(plugin.importlib.metadata, "version", find)
    with pytest.raises(SweepError, match=r"optuna>=4,<6"):
        plugin.check_optuna()


@pytest.mark.parametrize("name", ["CmaEsSampler", "NSGAIISampler", "QMCSampler"])
def test_optunas_samplers_search(tmp_path: Path, name: str) -> None:
    sampler = {"_target_": f"optuna.samplers.{name}", "seed": 1}
    arguments = ["x=interval(0,1)", "y=interval(0,1)"]
    trials = run_search(tmp_path, parabola, *arguments, sampler=sampler, n_trials=6)
    assert len({t.params["x"] for t in trials}) == 6


def test_a_gaussian_process_searches_beyond_its_random_start(tmp_path: Path) -> None:
    """Its first ten trials are drawn at random; then it knows where to look."""
    pytest.importorskip("torch")
    sampler = {"_target_": "optuna.samplers.GPSampler", "seed": 1}
    arguments = ["x=interval(0,1)", "y=tag(log,interval(0.001,1))"]
    trials = run_search(tmp_path, parabola, *arguments, sampler=sampler, n_trials=14)
    assert states(trials) == ["COMPLETE"] * 14
    start, model = ([t.values[0] for t in part] for part in (trials[:10], trials[10:]))
    assert min(model) < min(start)


def test_hyperband_prunes(tmp_path: Path) -> None:
    def task(config: dict[str, Any]) -> float:
        trial = current_trial()
        assert trial is not None
        for step in range(1, 10):
            trial.report(config["x"], step)
            if trial.should_prune():
                break
        return float(config["x"])

    pruner = {
        "_target_": "optuna.pruners.HyperbandPruner",
        "max_resource": 9,
        "reduction_factor": 3,
    }
    trials = run_search(tmp_path, task, "x=interval(0,1)", pruner=pruner, n_trials=20, sampler=TPE)
    pruned = [t for t in trials if t.state.name == "PRUNED"]
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert pruned
    assert min(t.params["x"] for t in complete) < min(t.params["x"] for t in pruned)
