"""What a sweep does when launchers break, jobs fail and processes die: with jobs that only write
their state, in place of training.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from flair2_exp.config import identity, schema
from flair2_exp.errors import ConfigError, DataError
from flair2_exp.locking import locked
from flair2_exp.run import record as run_state
from flair2_exp.run.record import RunState
from flair2_exp.run.results import METRICS, read_metrics
from flair2_exp.sweeps import ablation, failures
from flair2_exp.sweeps.ablation import AblationSweeper, SweepFailedError
from flair2_exp.sweeps.failures import Traced, _write_error
from flair2_exp.sweeps.plan import Job
from flair2_exp.tracking.run import NullRun
from flair2_exp.tracking.store import Store, open_store
from tests.report.made_runs import make_folder

Behaviour = Callable[[int, Path], None]
"""What a job with this seed does in its folder."""

FIXED = ("tracking=off", "preset=debug", "sweep.name=made")


class Killed(Exception):
    pass


@cache
def config_of(seed: int) -> schema.Config:
    """The config of a job, composed once for all tests."""
    return schema.typed(compose("config", [f"seed={seed}", *FIXED]))


def ends(seed: int, folder: Path, status: str = run_state.FINISHED, error: str = "") -> None:
    """Leave the state of a run in its folder."""
    RunState(identity.deciding(config_of(seed), "data"), status, error=error).write(folder)
    if status == run_state.FINISHED:
        metrics = read_metrics(folder) | {"test/miou": 0.5}
        (folder / METRICS).write_text(json.dumps(metrics))


class Launcher:
    """Runs jobs in turn as a launcher of several does: an exception of `Killed` is its own."""

    def __init__(self, root: Path, behaviour: Behaviour) -> None:
        self.root, self.behaviour = root, behaviour
        self.launches: list[list[int]] = []

    def launch(self, jobs: list[list[str]], first: int) -> list[JobReturn]:
        seeds = [int(str(job).partition("seed=")[2][0]) for job in jobs]
        self.launches.append(seeds)
        returns = []
        for seed in seeds:
            task = Traced(lambda _, s=seed: self.behaviour(s, self.root / f"seed={s}"))
            result = JobReturn(status=JobStatus.COMPLETED)
            try:
                task(OmegaConf.create())
            except Killed:
                raise
            except Exception as error:
                result.status, result.return_value = JobStatus.FAILED, error
            returns.append(result)
        return returns


class Sweep:
    """A sweep over seeds, with jobs that only behave."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "sweep"
        self.launcher = Launcher(self.folder, lambda seed, folder: None)

    def run(self, behaviour: Behaviour, *arguments: str, at_once: int | None = None) -> None:
        """Run it."""
        lines = ["seed=1,2,3,4", *FIXED, *arguments]
        sweeper = AblationSweeper()
        sweeper.config = self.config(lines, at_once)
        self.launcher = sweeper.launcher = Launcher(self.folder, behaviour)  # type: ignore[assignment]
        sweeper.sweep(lines)

    def config(self, lines: list[str], at_once: int | None) -> DictConfig:
        fixed = [line for line in lines if "," not in line]
        whole = compose("config", fixed, return_hydra_config=True)
        hydra = {
            "sweep": {"dir": str(self.folder), "subdir": "seed=${seed}"},
            "launcher": {"_target_": "Launcher", **({"n_jobs": at_once} if at_once else {})},
        }
        OmegaConf.set_struct(whole, False)
        whole.hydra = hydra
        return whole

    @property
    def launches(self) -> list[list[int]]:
        return self.launcher.launches


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Sweep]:
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        yield Sweep(tmp_path)


def works(seed: int, folder: Path) -> None:
    ends(seed, folder)


def test_all_jobs_go_to_a_launcher_of_several_at_once(made: Sweep) -> None:
    made.run(works, "sweep.report=false")
    assert made.launches == [[1, 2, 3, 4]]


def test_a_launcher_that_breaks_before_any_job_begins_is_not_asked_for_ever(made: Sweep) -> None:
    def breaks(seed: int, folder: Path) -> None:
        raise Killed("no worker could be started")

    with pytest.raises(SweepFailedError, match="4 of the sweep's jobs") as failed:
        made.run(breaks)
    assert made.launches == [[1, 2, 3, 4], [1], [2], [3], [4]]
    assert str(failed.value).count("Killed: no worker could be started") == 4


def test_the_neighbour_of_a_killed_worker_is_tried_again(made: Sweep) -> None:
    def second_is_killed(seed: int, folder: Path) -> None:
        if seed == 1 and len(made.launches) == 1:
            ends(seed, folder, run_state.RUNNING)  # was at work beside the killed one
            return
        if seed == 2:
            ends(seed, folder, run_state.RUNNING)
            raise Killed("a worker was killed")
        ends(seed, folder)

    with pytest.raises(SweepFailedError, match="1 of the sweep's jobs") as failed:
        made.run(second_is_killed, "sweep.report=false")
    assert made.launches == [[1, 2, 3, 4], [1], [2], [3, 4]]
    assert "seed=2: Killed: a worker was killed" in str(failed.value)
    state = RunState.read(made.folder / "seed=2")
    assert state is not None
    assert (state.status, state.error) == (run_state.FAILED, "Killed: a worker was killed")


def test_who_still_works_when_a_launcher_gives_up_is_waited_for(made: Sweep) -> None:
    def works_on(seed: int, folder: Path, holds: threading.Event) -> None:
        with locked(folder):
            ends(seed, folder, run_state.RUNNING)
            holds.set()
            time.sleep(0.5)
            ends(seed, folder)

    def second_is_killed(seed: int, folder: Path) -> None:
        if len(made.launches) > 1:
            ends(seed, folder)
        elif seed == 1:
            threading.Thread(
                target=works_on, args=(seed, folder, holds := threading.Event())
            ).start()
            holds.wait()
        else:
            raise Killed("a job on a cluster was killed, and its launcher left the others alone")

    made.run(second_is_killed, "sweep.report=false")
    assert made.launches == [[1, 2, 3, 4], [2, 3, 4]]


def test_what_failed_by_itself_beside_a_killed_worker_is_told_and_not_tried_again(
    made: Sweep,
) -> None:
    def first_fails(seed: int, folder: Path) -> None:
        if seed == 1:
            ends(seed, folder, run_state.FAILED, "ValueError: a bug")
        elif seed == 2 and len(made.launches) == 1:
            raise Killed("a worker was killed")
        else:
            ends(seed, folder)

    with pytest.raises(SweepFailedError, match="seed=1: ValueError: a bug"):
        made.run(first_fails, "sweep.report=false")
    assert made.launches == [[1, 2, 3, 4], [2, 3, 4]]


def test_a_job_that_failed_in_an_earlier_sweep_is_tried_again_after_a_launchers_error(
    made: Sweep,
) -> None:
    def fails(seed: int, folder: Path) -> None:
        ends(seed, folder, run_state.FAILED, "ValueError: a bug")
        raise ValueError("a bug")

    with pytest.raises(SweepFailedError, match="4 of"):
        made.run(fails)

    def breaks_once(seed: int, folder: Path) -> None:
        if len(made.launches) == 1:
            raise Killed("no worker could be started")
        ends(seed, folder)

    made.run(breaks_once, "sweep.report=false")
    assert made.launches == [[1, 2, 3, 4], [1], [2], [3], [4]]


def test_a_job_that_another_process_still_works_on_is_left_to_it(made: Sweep) -> None:
    def works_on(seed: int, folder: Path) -> None:
        ends(seed, folder, run_state.RUNNING)  # as a worker that outlives its killed sweep
        raise KeyboardInterrupt

    def held(seed: int, folder: Path) -> None:
        if seed == 1:
            raise ConfigError(f"{folder} is in use by process 7.")
        ends(seed, folder)

    with pytest.raises(KeyboardInterrupt):
        made.run(works_on)
    with pytest.raises(SweepFailedError, match=r"seed=1: .* is in use by process 7"):
        made.run(held, "sweep.report=false")
    state = RunState.read(made.folder / "seed=1")
    assert state is not None
    assert (state.status, state.error) == (run_state.RUNNING, "")


@pytest.mark.parametrize(("at_once", "launches"), [(2, [[1, 2]]), (1, [[1]])])
def test_after_a_refused_job_fail_fast_starts_no_further_one(
    made: Sweep, at_once: int, launches: list[list[int]]
) -> None:
    def refused(seed: int, folder: Path) -> None:
        if seed == 1:
            raise DataError("refused, and no folder left")
        ends(seed, folder)

    with pytest.raises(SweepFailedError, match="seed=1: refused, and no folder") as failed:
        made.run(refused, "sweep.fail_fast=true", "sweep.report=false", at_once=at_once)
    assert made.launches == launches
    assert "seed=3: not started" in str(failed.value)
    assert not (made.folder / "seed=3").exists()


def test_refusals_of_one_sweep_are_not_those_of_another(made: Sweep) -> None:
    def refused(seed: int, folder: Path) -> None:
        raise DataError("refused")

    with pytest.raises(SweepFailedError):
        made.run(refused)
    with pytest.raises(SweepFailedError) as failed:
        made.run(refused, "sweep.fail_fast=true", at_once=1)
    assert str(failed.value).count("refused") == 1
    assert str(failed.value).count("not started") == 3


def test_a_sweep_that_runs_is_not_started_again_beside(made: Sweep) -> None:
    with locked(made.folder), pytest.raises(ConfigError, match="in use by process") as refused:
        made.run(works)
    assert len(str(refused.value).splitlines()) == 2
    assert "sweep.name=NAME" in str(refused.value)
    assert made.launches == []


def test_a_sweep_holds_its_folder_while_its_jobs_run(made: Sweep) -> None:
    def looks(seed: int, folder: Path) -> None:
        with pytest.raises(ConfigError, match="in use"), locked(made.folder):
            pass
        ends(seed, folder)

    made.run(looks, "sweep.report=false")
    with locked(made.folder):
        pass


def test_what_another_start_has_finished_meanwhile_is_not_run_again(
    made: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.run(works, "sweep.report=false")
    for seed in (1, 2, 3, 4):
        (made.folder / f"seed={seed}" / run_state.FILE).rename(made.folder / f"{seed}.json")

    def finished_by_another(folder: Path) -> None:
        for seed in (1, 2):
            kept = made.folder / f"{seed}.json"
            if kept.exists():
                kept.rename(made.folder / f"seed={seed}" / run_state.FILE)

    monkeypatch.setattr(ablation, "require_writable", finished_by_another)
    made.run(works, "sweep.report=false")
    assert made.launches == [[3, 4]]


def test_a_bugs_traceback_lies_in_the_jobs_folder_until_the_job_is_done(made: Sweep) -> None:
    def fails(seed: int, folder: Path) -> None:
        if seed == 2:
            ends(seed, folder, run_state.FAILED, "ValueError: a bug")
            raise ValueError("a bug of http://me:hunter2@host")
        if seed == 3:
            raise DataError("refused")
        ends(seed, folder)

    with pytest.raises(SweepFailedError) as failed:
        made.run(fails, "sweep.report=false")
    log, beside = made.folder / "seed=2" / "error.txt", made.folder / "seed=3.error.txt"
    assert f"    {log}\n" in str(failed.value)
    assert str(failed.value).endswith(f"    {beside}")
    text = log.read_text()
    assert "in fails" in text
    assert "hunter2" not in text
    assert "DataError: refused" in beside.read_text()
    made.run(works, "sweep.report=false")
    assert not log.exists()
    assert not beside.exists()


def test_an_error_about_a_file_whose_name_is_no_text_does_not_end_the_sweep(made: Sweep) -> None:
    def fails(seed: int, folder: Path) -> None:
        if seed == 1:
            raise FileNotFoundError(os.fsdecode(b"caf\xe9.tif"))
        ends(seed, folder)

    with pytest.raises(SweepFailedError, match="1 of the sweep's jobs"):
        made.run(fails, "sweep.report=false")
    assert "caf\\udce9.tif" in (made.folder / "seed=1.error.txt").read_text()


def test_a_full_disk_does_not_end_the_sweep(
    made: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(job: object, error: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fails(seed: int, folder: Path) -> None:
        if seed == 1:
            raise DataError("refused")
        ends(seed, folder)

    monkeypatch.setattr(failures, "_write_error", full)
    with pytest.raises(SweepFailedError, match="1 of the sweep's jobs"):
        made.run(fails, "sweep.report=false")
    assert "No space left" in caplog.text


def test_a_job_outside_of_the_sweeps_folder_has_its_traceback_beside_the_others(
    tmp_path: Path,
) -> None:
    with initialize_config_dir(str(schema.config_folder()), version_base="1.3"):
        job = Job(0, (), config_of(1), tmp_path / "sweep", tmp_path / "elsewhere" / "job")
    job.root.mkdir()
    path = _write_error(job, DataError("refused"))
    assert path.parent == job.root
    assert path.read_text() == "flair2_exp.errors.DataError: refused\n"


def test_a_traceback_comes_back_from_another_process() -> None:
    def fails(_: DictConfig) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug") as raised:
        Traced(fails)(OmegaConf.create())
    came = pickle.loads(pickle.dumps(raised.value))
    assert came.__traceback__ is None
    assert "in fails" in vars(came)["flair2_traceback"]


class Told(NullRun):
    """Remembers what a parent was told."""

    def __init__(self) -> None:
        self.page, self.metrics, self.texts = "", dict[str, float](), list[str]()

    def describe(self, markdown: str) -> None:
        self.page = markdown

    def log_metrics(self, metrics: Any, step: int = 0, timestamp: int | None = None) -> None:
        self.metrics |= metrics

    def log_text(self, text: str, path: str) -> None:
        if path == ablation.JOBS_FILE:
            self.texts.append(text)


def done_and_refused(seed: int, folder: Path) -> None:
    """Runs with counts for a report; the first is refused."""
    if seed == 1:
        raise DataError("the data are gone")
    make_folder(folder.parent / "made", config_of(seed).name, seed).rename(folder)
    ends(seed, folder)


def test_the_report_says_why_a_run_is_absent(made: Sweep) -> None:
    with pytest.raises(SweepFailedError):
        made.run(done_and_refused)
    report = json.loads((made.folder / "report" / "leaderboard.json").read_text())
    assert report["absent"] == [
        {"row": "utt", "seed": 1, "state": "failed", "reason": "the data are gone"}
    ]


def test_the_parents_page_has_the_findings_and_its_table_the_identities(
    made: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = Told()
    monkeypatch.setattr(ablation, "open_parent", lambda *_, **__: parent)
    with pytest.raises(SweepFailedError):
        made.run(done_and_refused)
    assert "utt, seed 1: failed (the data are gone)" in parent.page
    assert parent.metrics["jobs/not_done"] == 1
    assert 0 < parent.metrics["best/miou"] < 1
    early, late = parent.texts
    assert " config " in early
    assert identity.identity(config_of(2), "data") in late


def test_a_bug_in_the_report_does_not_hide_what_failed(
    made: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError("in the report")

    monkeypatch.setattr(ablation, "write_report", breaks)
    with pytest.raises(SweepFailedError, match="the data are gone"):
        made.run(done_and_refused)
    assert "ZeroDivisionError: in the report" in caplog.text
    with pytest.raises(ZeroDivisionError):
        made.run(works)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def parent(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Opens the parent of a sweep in a folder."""
    monkeypatch.setattr(ablation, "open_store", lambda config: store)
    config = schema.Config()
    config.tracking.experiment = "parents"
    options = schema.SweepConfig(name="made")

    def opened(folder: Path = tmp_path, **how: bool) -> Any:
        return ablation.open_parent(options, folder, config, **how)

    return opened


def test_a_sweep_killed_before_it_noted_its_parent_finds_it(
    parent: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = ablation._note

    def killed(folder: Path, **values: str) -> None:
        if "parent_run_id" in values:
            raise KeyboardInterrupt
        note(folder, **values)

    with monkeypatch.context() as patched:
        patched.setattr(ablation, "_note", killed)
        with pytest.raises(KeyboardInterrupt):
            parent()
    assert ablation.parent_of(tmp_path) is None
    with parent(take_over=True) as run:
        assert ablation.parent_of(tmp_path) == run.run_id
        assert run._resumed
    found = run.store.find_run("1", {"flair2.folder": str(tmp_path)})
    assert found == run.run_id


def test_a_sweep_in_a_folder_made_anew_gets_a_parent_of_its_own(
    parent: Callable[..., Any], tmp_path: Path
) -> None:
    with parent() as first:
        pass
    (tmp_path / ablation.SWEEP_FILE).unlink()
    with parent() as second:
        pass
    assert first.run_id != second.run_id
    with parent() as third:
        assert third.run_id == second.run_id


def test_the_note_of_the_parent_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation._note(tmp_path, parent_run_id="before")

    def killed(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        ablation._note(tmp_path, parent_run_id="after")
    assert ablation.parent_of(tmp_path) == "before"
