"""What a sweep does when launchers break, workers are killed and others are at work."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from flair2_exp.errors import ConfigError, DataError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED, RUNNING
from flair2_exp.locking import locked
from flair2_exp.report import folders
from flair2_exp.report.runs import ScoredRun
from flair2_exp.sweeps import ablation
from flair2_exp.sweeps.ablation import SweepFailedError
from tests.report.made_runs import make_runs
from tests.sweeps.made import LauncherError, MadeSweep, ends, record_of, works

NO_REPORT = "sweep.report=false"


def test_all_jobs_go_to_a_launcher_of_several_at_once(made: MadeSweep) -> None:
    made.run(works, NO_REPORT)
    assert made.launches == [[1, 2, 3, 4]]


def test_a_launcher_that_breaks_before_any_job_begins_is_not_asked_for_ever(
    made: MadeSweep,
) -> None:
    def breaks(seed: int, folder: Path) -> None:
        raise LauncherError("no worker could be started")

    with pytest.raises(SweepFailedError, match="4 of the sweep's jobs") as failure:
        made.run(breaks)
    assert made.launches == [[1, 2, 3, 4], [1], [2], [3], [4]]
    assert str(failure.value).count("LauncherError: no worker could be started") == 4


def test_a_plan_says_how_many_seeds_a_difference_needs(
    made: MadeSweep,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = (NO_REPORT, "sweep.dry_run=true", "sweep.difference=0.4")
    made.run(works, *asked)
    assert (
        "sweep.difference=0.4: how many seeds it needs is said as soon" in capsys.readouterr().out
    )
    made.run(works, NO_REPORT)
    runs = iter(make_runs(tmp_path / "runs", {"unet": 1.0, "utt": 1.3}, seeds=2))
    monkeypatch.setattr(folders, "read_folder", lambda folder: next(runs))
    made.run(works, *asked)
    assert "0.4 needs 2 seeds per row." in capsys.readouterr().out


def test_what_a_plan_has_read_is_not_read_again_for_the_report(
    made: MadeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_runs(tmp_path / "runs", {"unet": 1.0}, seeds=4)
    read: list[int] = []

    def reads(folder: RunFolder) -> ScoredRun:
        seed = int(folder.path.name.removeprefix("seed="))
        read.append(seed)
        return runs[seed - 1]

    def finishes(seed: int, folder: Path) -> None:
        ends(seed, folder)
        RunFolder(folder).config.touch()

    monkeypatch.setattr(folders, "read_folder", reads)
    made.run(finishes)
    assert read == [1, 2, 3, 4]  # the plan found none
    ends(2, made.folder / "seed=2", FAILED)
    read.clear()
    made.run(finishes)
    assert read == [1, 3, 4, 2]  # the plan read those that were done, the report the other


def test_the_neighbour_of_a_killed_worker_is_tried_again(made: MadeSweep) -> None:
    def second_is_killed(seed: int, folder: Path) -> None:
        if seed == 1 and len(made.launches) == 1:
            ends(seed, folder, RUNNING)  # was at work beside the killed one
            return
        if seed == 2:
            ends(seed, folder, RUNNING)
            raise LauncherError("a worker was killed")
        ends(seed, folder)

    with pytest.raises(SweepFailedError, match="1 of the sweep's jobs") as failure:
        made.run(second_is_killed, NO_REPORT)
    assert made.launches == [[1, 2, 3, 4], [1], [2], [3, 4]]
    assert "seed=2: LauncherError: a worker was killed" in str(failure.value)
    record = record_of(made.folder / "seed=2")
    assert (record.status, record.error) == (FAILED, "LauncherError: a worker was killed")


def test_who_still_works_when_a_launcher_gives_up_is_waited_for(made: MadeSweep) -> None:
    def works_on(seed: int, folder: Path, at_work: threading.Event) -> None:
        with locked(folder):
            ends(seed, folder, RUNNING)
            at_work.set()
            time.sleep(0.5)
            ends(seed, folder)

    def second_is_killed(seed: int, folder: Path) -> None:
        if len(made.launches) > 1:
            ends(seed, folder)
        elif seed == 1:
            at_work = threading.Event()
            threading.Thread(target=works_on, args=(seed, folder, at_work)).start()
            at_work.wait()
        else:
            raise LauncherError("a job on a cluster was killed, its launcher left the others alone")

    made.run(second_is_killed, NO_REPORT)
    assert made.launches == [[1, 2, 3, 4], [2, 3, 4]]


def test_what_failed_by_itself_beside_a_killed_worker_is_named_and_not_tried_again(
    made: MadeSweep,
) -> None:
    def first_fails(seed: int, folder: Path) -> None:
        if seed == 1:
            ends(seed, folder, FAILED, "ValueError: a bug")
        elif seed == 2 and len(made.launches) == 1:
            raise LauncherError("a worker was killed")
        else:
            ends(seed, folder)

    with pytest.raises(SweepFailedError, match="seed=1: ValueError: a bug"):
        made.run(first_fails, NO_REPORT)
    assert made.launches == [[1, 2, 3, 4], [2, 3, 4]]


def test_a_job_that_failed_in_an_earlier_sweep_is_tried_again_after_a_launchers_error(
    made: MadeSweep,
) -> None:
    def fails(seed: int, folder: Path) -> None:
        ends(seed, folder, FAILED, "ValueError: a bug")
        raise ValueError("a bug")

    with pytest.raises(SweepFailedError, match="4 of"):
        made.run(fails)

    def breaks_once(seed: int, folder: Path) -> None:
        if len(made.launches) == 1:
            raise LauncherError("no worker could be started")
        ends(seed, folder)

    made.run(breaks_once, NO_REPORT)
    assert made.launches == [[1, 2, 3, 4], [1], [2], [3], [4]]


def test_a_job_that_another_process_still_works_on_is_left_to_it(made: MadeSweep) -> None:
    def works_on(seed: int, folder: Path) -> None:
        ends(seed, folder, RUNNING)  # as a worker that outlives its killed sweep
        raise KeyboardInterrupt

    def in_use(seed: int, folder: Path) -> None:
        if seed == 1:
            raise ConfigError(f"{folder} is in use by process 7.")
        ends(seed, folder)

    with pytest.raises(KeyboardInterrupt):
        made.run(works_on)
    with pytest.raises(SweepFailedError, match=r"seed=1: .* is in use by process 7"):
        made.run(in_use, NO_REPORT)
    record = record_of(made.folder / "seed=1")
    assert (record.status, record.error) == (RUNNING, "")


@pytest.mark.parametrize(("at_once", "launches"), [(2, [[1, 2]]), (1, [[1]])])
def test_after_a_refused_job_fail_fast_starts_no_further_one(
    made: MadeSweep, at_once: int, launches: list[list[int]]
) -> None:
    def refused(seed: int, folder: Path) -> None:
        if seed == 1:
            raise DataError("refused, and no folder left")
        ends(seed, folder)

    with pytest.raises(SweepFailedError, match="seed=1: refused, and no folder") as failure:
        made.run(refused, "sweep.fail_fast=true", NO_REPORT, n_jobs=at_once)
    assert made.launches == launches
    assert "seed=3: not started" in str(failure.value)
    assert not (made.folder / "seed=3").exists()


def test_refusals_of_one_sweep_are_not_those_of_another(made: MadeSweep) -> None:
    def refused(seed: int, folder: Path) -> None:
        raise DataError("refused")

    with pytest.raises(SweepFailedError):
        made.run(refused)
    with pytest.raises(SweepFailedError) as failure:
        made.run(refused, "sweep.fail_fast=true", n_jobs=1)
    assert str(failure.value).count("refused") == 1
    assert str(failure.value).count("not started") == 3


def test_a_sweep_that_runs_is_not_started_again_beside(made: MadeSweep) -> None:
    with locked(made.folder), pytest.raises(ConfigError, match="in use by process") as refusal:
        made.run(works)
    assert len(str(refusal.value).splitlines()) == 2
    assert "sweep.name=NAME" in str(refusal.value)
    assert made.launches == []


def test_a_sweep_holds_its_folder_while_its_jobs_run(made: MadeSweep) -> None:
    def looks(seed: int, folder: Path) -> None:
        with pytest.raises(ConfigError, match="in use"), locked(made.folder):
            pass
        ends(seed, folder)

    made.run(looks, NO_REPORT)
    with locked(made.folder):
        pass


def test_what_another_start_has_finished_meanwhile_is_not_run_again(
    made: MadeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run(works, NO_REPORT)
    records = {seed: RunFolder(made.folder / f"seed={seed}").record for seed in (1, 2, 3, 4)}
    for seed, record in records.items():
        record.rename(made.folder / f"{seed}.json")

    def finished_by_another(*_: object, **__: object) -> None:
        for seed in (1, 2):
            (made.folder / f"{seed}.json").rename(records[seed])

    monkeypatch.setattr(ablation, "require_feasible", finished_by_another)
    made.run(works, NO_REPORT)
    assert made.launches == [[3, 4]]


def test_another_experiment_that_another_start_has_run_meanwhile_is_not_taken_over(
    made: MadeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_by_another(*_: object, **__: object) -> None:
        ends(7, made.folder / "seed=2")

    monkeypatch.setattr(ablation, "require_feasible", run_by_another)
    with pytest.raises(ConfigError, match="another experiment: seed: 7 -> 2"):
        made.run(works, NO_REPORT)
    assert made.launches == []
