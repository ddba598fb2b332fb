"""Searches whose trials run one by one on an engine, and what becomes of them when things die."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from flair2_exp.engines.engine import START
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.optuna_sweeper import SweepError
from flair2_exp.optuna_sweeper.process import Process
from flair2_exp.optuna_sweeper.storage import open_storage
from flair2_exp.optuna_sweeper.trial import VARIABLE, current_trial
from flair2_exp.optuna_sweeper.worker import WORKER
from tests.configs import SMALL_SAMPLE
from tests.engines.made import (
    Cluster,
    LostError,
    dies,
    ends,
    enter,
    fails,
    search_on,
    stopped,
    ticket_of,
    values_of,
)
from tests.optuna_sweeper.toy import states, trials_of
from tests.sweeps.commands import command, runs

X = "x=interval(0,1)"


@pytest.fixture(autouse=True)
def _no_ticket() -> Iterator[None]:
    yield
    os.environ.pop(VARIABLE, None)


def parabola(command: JobCommand) -> None:
    x = float(values_of(command.words)["x"])
    ends(command.folder, value=1 - (x - 0.3) ** 2)


def numbers(cluster: Cluster) -> list[int]:
    return [command.number for command in cluster.starts]


def kill_worker(folder: Path) -> None:
    """Make the study believe that the process which ran its trials is gone."""
    storage = open_storage(str(folder / "optuna.journal"))
    dead = {**Process.this().plain(), "start": "1"}
    for trial in trials_of(str(folder / "optuna.journal"), "toy"):
        if trial.state == TrialState.RUNNING:
            study = storage.get_study_id_from_name("toy")
            key = storage.get_trial_id_from_study_id_trial_number(study, trial.number)
            storage.set_trial_user_attr(key, WORKER, dead)


def complete(trials: list[FrozenTrial]) -> int:
    return states(trials).count("COMPLETE")


def test_the_next_trial_is_drawn_as_soon_as_one_ends(tmp_path: Path) -> None:
    """The first is slow: the others pass it, where a batch would wait for it."""
    seen: list[int] = []

    def job(command: JobCommand) -> None:
        seen.append(command.number)
        parabola(command)

    cluster = Cluster(job, room=3, looks=lambda command: 9 if command.number == 0 else 1)
    trials = search_on(tmp_path, cluster, X, n_trials=12)
    assert states(trials) == ["COMPLETE"] * 12
    assert cluster.most == 3
    assert numbers(cluster) == list(range(12))
    assert seen.index(0) >= 6
    assert [trial.values[0] for trial in trials] == pytest.approx(
        [1 - (trial.params["x"] - 0.3) ** 2 for trial in trials]
    )


def test_a_limit_of_the_search_holds_beside_that_of_the_engine(tmp_path: Path) -> None:
    cluster = Cluster(parabola, room=3)
    search_on(tmp_path, cluster, X, n_trials=6, n_jobs=2)
    assert cluster.most == 2


def test_an_engine_without_a_limit_needs_one(tmp_path: Path) -> None:
    cluster = Cluster(parabola, room=None)
    with pytest.raises(SweepError, match=r"give hydra\.sweeper\.n_jobs=4"):
        search_on(tmp_path, cluster, X, n_trials=6)
    assert numbers(cluster) == []
    trials = search_on(tmp_path, cluster, X, n_trials=6, n_jobs=4)
    assert (complete(trials), cluster.most) == (6, 4)


def test_a_job_that_was_killed_is_started_again_with_its_trial(tmp_path: Path) -> None:
    def job(command: JobCommand) -> None:
        if command.number == 1 and numbers(cluster).count(1) < 3:
            dies(command.folder)
        else:
            parabola(command)

    cluster = Cluster(job)
    assert states(search_on(tmp_path, cluster, X, n_trials=4)) == ["COMPLETE"] * 4
    assert numbers(cluster).count(1) == 3


def test_what_kills_its_job_each_time_is_a_failure_and_made_good(tmp_path: Path) -> None:
    def job(command: JobCommand) -> None:
        if command.number == 1:
            dies(command.folder)
        else:
            parabola(command)

    cluster = Cluster(job)
    trials = search_on(tmp_path, cluster, X, n_trials=4, launcher={"retries": 1})
    assert states(trials) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert "ended without a word" in trials[1].user_attrs["failure"]
    assert numbers(cluster).count(1) == 2


def test_a_job_that_somebody_stops_for_ever_is_not_the_end_of_the_search(tmp_path: Path) -> None:
    def job(command: JobCommand) -> None:
        if command.folder.path.name == "run_0" and len(cluster.starts) < 5:
            stopped(command.folder)
        else:
            parabola(command)

    cluster = Cluster(job, room=1)
    trials = search_on(tmp_path, cluster, X, n_trials=2)
    assert states(trials) == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].params == trials[0].params


def test_a_failure_is_made_good_and_too_many_end_the_search_when_the_others_have_ended(
    tmp_path: Path,
) -> None:
    def job(command: JobCommand) -> None:
        if command.number in (0, 2):
            fails(command.folder)
        else:
            parabola(command)

    cluster = Cluster(job, room=2, looks=lambda command: 6 if command.number == 1 else 1)
    with pytest.raises(SweepError, match=r"2 trials failed \(max_failures=2\)") as caught:
        search_on(tmp_path, cluster, X, n_trials=6, max_failures=2)
    assert "trial 2: JobFailedError: ValueError: a bug" in str(caught.value)
    trials = trials_of(str(tmp_path / "optuna.journal"), "toy")
    assert states(trials) == ["FAIL", "COMPLETE", "FAIL"]
    assert cluster.stopped == []
    assert complete(search_on(tmp_path, cluster, X, n_trials=6)) == 6


def test_an_objective_that_is_never_measured_ends_the_search(tmp_path: Path) -> None:
    def job(command: JobCommand) -> None:
        ends(command.folder)
        command.folder.metrics.write_text('{"val/loss": 1.0}')

    with pytest.raises(SweepError, match="objective=val/miou was never logged"):
        search_on(tmp_path, Cluster(job), X, n_trials=6)


def test_a_trial_is_pruned_by_its_job(tmp_path: Path) -> None:
    def job(command: JobCommand) -> None:
        enter(command)
        trial = current_trial()
        assert trial is not None
        assert trial.number == command.number
        trial.report(-1.0 if command.number == 2 else 1.0, 1)
        parabola(command)

    threshold = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.0}
    trials = search_on(tmp_path, Cluster(job), X, n_trials=4, pruner=threshold)
    assert states(trials) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143), RuntimeError("a bug")])
def test_what_ends_a_search_stops_its_jobs_and_their_trials_are_tried_again(
    tmp_path: Path, error: BaseException
) -> None:
    def looks(command: JobCommand) -> int:
        if len(cluster.starts) == 5:
            raise error
        return 2

    cluster = Cluster(parabola, looks=looks)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 (any of the three)
        search_on(tmp_path, cluster, X, n_trials=6)
    assert caught.type is (error if isinstance(error, type) else type(error))
    assert cluster.at_work == {}
    before = trials_of(str(tmp_path / "optuna.journal"), "toy")
    assert "RUNNING" not in states(before)
    assert {"lost"} <= {key for trial in before for key in trial.user_attrs}
    cluster.looks = lambda command: 1
    trials = search_on(tmp_path, cluster, X, n_trials=6)
    assert complete(trials) == 6
    assert len({trial.params["x"] for trial in trials}) == 6
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    folders = {f"run_{trial.user_attrs.get('first_attempt', trial.number)}" for trial in done}
    assert folders == {path.name for path in tmp_path.glob("run_*")}


def test_jobs_that_outlive_a_search_keep_their_trials(tmp_path: Path) -> None:
    def looks(command: JobCommand) -> int:
        if len(cluster.starts) == 5:
            raise KeyboardInterrupt
        return 3 + command.number

    cluster = Cluster(parabola, looks=looks)
    with pytest.raises(KeyboardInterrupt):
        search_on(tmp_path, cluster, X, n_trials=6, launcher={"outlives": True})
    assert (len(cluster.at_work), cluster.stopped) == (1, [])
    assert "RUNNING" in states(trials_of(str(tmp_path / "optuna.journal"), "toy"))


def lost_search(folder: Path, cluster: Cluster, start: int, **options: Any) -> None:
    """Run a search that is killed when it makes its start of that number, without a word."""

    def looks(command: JobCommand) -> int:
        if len(cluster.starts) == start:
            raise LostError
        return 3 + 2 * command.number  # they end one after the other

    cluster.looks = looks
    with pytest.raises(LostError):
        search_on(folder, cluster, X, launcher={"outlives": True}, **options)
    kill_worker(folder)
    cluster.looks = lambda command: 1


def test_a_search_that_was_killed_finds_its_jobs_at_work_and_starts_none_twice(
    tmp_path: Path,
) -> None:
    tickets: list[int] = []

    def job(command: JobCommand) -> None:
        number = ticket_of(command).number
        trial = trials_of(str(tmp_path / "optuna.journal"), "toy")[number]
        assert trial.state == TrialState.RUNNING
        tickets.append(number)
        parabola(command)

    cluster = Cluster(job, room=3)
    lost_search(tmp_path, cluster, 5, n_trials=8)
    at_work = [command.number for command, _ in cluster.at_work.values()]
    assert len(at_work) == 2
    trials = search_on(tmp_path, cluster, X, n_trials=8)
    assert states(trials) == ["COMPLETE"] * 8
    # The fifth was started and lost before its engine had it.
    assert sorted(numbers(cluster)) == sorted([*range(8), 4])
    assert sorted(tickets) == list(range(8))
    assert cluster.most == 3


@pytest.mark.parametrize("room", [None, 3])
def test_what_has_ended_while_nobody_looked_counts(tmp_path: Path, room: int | None) -> None:
    def job(command: JobCommand) -> None:
        if command.number == 1:
            fails(command.folder)
        else:
            parabola(command)

    cluster = Cluster(job, room=room)
    lost_search(tmp_path, cluster, 4, n_trials=6, n_jobs=3)
    while cluster.at_work:
        cluster.advance(next(iter(cluster.at_work)))
    trials = search_on(tmp_path, cluster, X, n_trials=6, n_jobs=3)
    assert complete(trials) == 6
    assert trials[1].state == TrialState.FAIL
    assert all(numbers(cluster).count(number) == 1 for number in (0, 1, 2))


def test_a_cancelled_job_is_a_failed_trial(tmp_path: Path) -> None:
    def job(command: JobCommand) -> None:
        if command.number == 0:
            submission = Submission.read(command.folder)
            assert submission is not None
            submission.cancelled = True
            submission.write(command.folder)
        else:
            parabola(command)

    trials = search_on(tmp_path, Cluster(job), X, n_trials=3)
    assert states(trials) == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert "cancelled" in trials[0].user_attrs["failure"]


def test_a_trial_of_which_a_job_cannot_be_made_is_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.engines import made

    command = made.MadeLauncher.command

    def refuses(self: Any, overrides: Any, number: int, title: str = "") -> Any:
        if number == 1:
            raise ValueError("no such combination")
        return command(self, overrides, number, title)

    monkeypatch.setattr(made.MadeLauncher, "command", refuses)
    trials = search_on(tmp_path, Cluster(parabola), X, n_trials=3)
    assert states(trials) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].user_attrs["failure"] == "ValueError: no such combination"


def test_heart_beats_for_all_that_run(tmp_path: Path) -> None:
    def job(command: JobCommand) -> None:
        time.sleep(0.25)
        parabola(command)

    cluster = Cluster(job, room=3)
    trials = search_on(tmp_path, cluster, X, n_trials=3, heartbeat_grace=0.2)
    assert all(trial.user_attrs.get("beat", 0) > 0 for trial in trials)


OUTCOMES = st.sampled_from(["done", "done", "done", "dies", "fails", "stopped", "lost"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(outcomes=st.lists(OUTCOMES, max_size=25), room=st.integers(1, 4), total=st.integers(1, 8))
def test_the_total_is_exact_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, outcomes: list[str], room: int, total: int
) -> None:
    """Jobs that die, fail and are stopped; searches that are killed with their jobs at work."""
    folder = tmp_path_factory.mktemp("search")
    left = list(outcomes)
    finished: list[str] = []

    def job(command: JobCommand) -> None:
        outcome = left.pop(0) if left else "done"
        if outcome in ("dies", "fails", "stopped"):
            {"dies": dies, "fails": fails, "stopped": stopped}[outcome](command.folder)
            return
        finished.append(str(command.folder))
        parabola(command)
        if outcome == "lost":
            raise LostError

    cluster = Cluster(job, room=room)
    while True:
        try:
            trials = search_on(
                folder, cluster, X, n_trials=total, max_failures=None, launcher={"outlives": True}
            )
            break
        except LostError:
            kill_worker(folder)
    assert complete(trials) == total
    assert states(trials).count("RUNNING") == states(trials).count("WAITING") == 0
    assert len(finished) == len(set(finished)) == total
    assert cluster.most <= room


# A whole search of the package, on this machine's slots.


def started(root: Path) -> dict[str, int]:
    """How often the job of each trial's folder was started."""
    outputs = (root / "multirun" / "tune_unet").glob("*/output.log")
    return {path.parent.name: path.read_text().count(START) for path in outputs}


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_killed_search_of_four_at_a_time_leaves_its_jobs_at_work_and_ends_exactly(
    tmp_path: Path,
) -> None:
    arguments = (
        "tune=unet", "preset=debug", "trainer=cpu", "tune.n_trials=12", "hydra/launcher=slots",
        "hydra.launcher.slots=4", "hydra.launcher.stagger=0", *SMALL_SAMPLE,
    )  # fmt: skip
    first = subprocess.Popen(
        [sys.executable, "-m", "flair2_exp", *arguments, f"paths.root={tmp_path}"],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    journal = str(tmp_path / "multirun" / "tune_unet" / "optuna.journal")
    while not (len(started(tmp_path)) >= 6 and complete(trials_of(journal, "unet")) >= 1):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.2)
    first.kill()
    first.communicate()
    second = command(tmp_path, *arguments)
    assert second.returncode == 0, second.stderr
    assert "taken over" in second.stdout  # whether its job still runs or has ended meanwhile
    trials = trials_of(journal, "unet")
    assert len(trials) == 12
    assert set(states(trials)) <= {"COMPLETE", "PRUNED"}
    assert started(tmp_path) == {str(number): 1 for number in range(12)}
    of_trials = [run for run in runs(tmp_path, study="unet") if "flair2.trial" in run.data.tags]
    assert sorted(int(run.data.tags["flair2.trial"]) for run in of_trials) == list(range(12))
    assert {run.info.status for run in of_trials} == {"FINISHED"}
