"""Where the jobs of a sweep are, from its folder alone, and their end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flair2_exp.config.engines import SlotsConfig
from flair2_exp.engines.job import Submission
from flair2_exp.engines.slots import Slots
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import SWEEP_CONFIG, RunFolder
from flair2_exp.lifecycle.record import FAILED, FINISHED, KILLED, RUNNING, RunRecord
from flair2_exp.locking import locked
from flair2_exp.sweeps.ablation import job_table
from flair2_exp.sweeps.overview import cancel, overview, sweeps_below, write_jobs
from flair2_exp.tracking.tags import Tag
from tests.commands import answer
from tests.engines.scripts import script, until, written
from tests.sweeps.plans import planned

HOLDS = """
import sys, time
from pathlib import Path
from flair2_exp.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
JOB = """
def end(number, frame):
    advance(); record("KILLED"); sys.exit(143)
signal.signal(signal.SIGTERM, end)
record("RUNNING"); leave("ready", "")
time.sleep(600)
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a sweep that has not begun."""
    folder = tmp_path / "multirun" / "it"
    folder.mkdir(parents=True)
    (folder / SWEEP_CONFIG).write_text("name: flair2_exp\n")
    return folder


def _run(sweep: Path, name: str, status: str = "", error: str = "") -> RunFolder:
    folder = RunFolder(sweep / name)
    folder.path.mkdir(parents=True)
    if status:
        RunRecord({}, status=status, error=error).write(folder)
    return folder


def test_each_job_is_where_its_folder_says(sweep: Path) -> None:
    done = _run(sweep, "done", FINISHED)
    done.metrics.write_text(json.dumps({"test/miou": 0.25, "best/val/miou": 0.5}))
    failed = _run(sweep, "failed", FAILED, "ValueError: no\nmore")
    refused = _run(sweep, "refused")
    Submission("slots", "1").write(refused)
    refused.output.write_text("=== start 1\nflair2-exp: no such file\n")
    stopped, died = _run(sweep, "stopped", KILLED), _run(sweep, "died", RUNNING)
    cancelled = _run(sweep, "cancelled", KILLED)
    Submission("slots", "1", cancelled=True).write(cancelled)
    at_work = _run(sweep, "at_work", RUNNING)
    at_work.config.write_text("trainer:\n  max_epochs: 7\n")
    at_work.history.write_text("epoch,val/miou\n1,0.125\n2,\n")
    folders = [done, failed, refused, stopped, died, cancelled, at_work]
    waiting = RunFolder(sweep / "waiting")
    write_jobs(sweep, [(each.path.name, 3, each) for each in [*folders, waiting]])
    with locked(at_work.path):
        states = {job.row: job for job in overview(sweep)}
    assert {row: job.state for row, job in states.items()} == {
        "done": "done", "failed": "failed", "refused": "failed", "stopped": "stopped",
        "died": "stopped", "cancelled": "cancelled", "at_work": "running", "waiting": "waiting",
    }  # fmt: skip
    assert states["done"].score == 0.25
    assert states["failed"].note == "ValueError: no"
    assert states["refused"].note == "no such file"
    assert (states["at_work"].epoch, states["at_work"].epochs) == (2, 7)
    assert states["at_work"].score is None
    assert {job.seed for job in states.values()} == {3}


def test_the_trials_of_a_search_are_found_by_their_folders(sweep: Path) -> None:
    for number in (10, 9, 0):
        _run(sweep, str(number), FINISHED)
    assert [job.row for job in overview(sweep)] == ["trial 0", "trial 9", "trial 10"]


def test_jobs_that_run_end_with_a_checkpoint_and_are_marked(sweep: Path) -> None:
    jobs = [script(sweep, number, JOB) for number in range(2)]
    engine = Slots(SlotsConfig(slots=2, stagger=0.0))
    assert engine.start(jobs, [1, 1]) == 2
    until(lambda: all((job.folder.path / "ready").exists() for job in jobs))
    assert [job.state for job in overview(sweep)] == ["running", "running"]
    assert cancel(sweep).jobs == 2
    until(lambda: {job.state for job in overview(sweep)} == {"cancelled"})
    assert all(job.folder.last.exists() for job in jobs)
    assert cancel(sweep).jobs == 0


def test_one_job_can_be_cancelled(sweep: Path) -> None:
    jobs = [script(sweep, number, JOB) for number in range(2)]
    engine = Slots(SlotsConfig(slots=2, stagger=0.0))
    engine.start(jobs, [1, 1])
    until(lambda: all((job.folder.path / "ready").exists() for job in jobs))
    assert cancel(jobs[0].folder.path).jobs == 1
    until(lambda: overview(sweep)[0].state == "cancelled")
    assert overview(sweep)[1].state == "running"
    cancel(sweep)
    until(lambda: overview(sweep)[1].state == "cancelled")


def test_a_run_of_its_own_can_be_cancelled_and_one_in_a_sweeps_process_cannot(
    tmp_path: Path,
) -> None:
    own, job = RunFolder(tmp_path / "own"), RunFolder(tmp_path / "job")
    RunRecord({}).write(own)
    RunRecord({str(Tag.SWEEP): "it"}).write(job)
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(own)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert cancel(own.path).jobs == 1
    assert process.wait(10) == -signal.SIGTERM
    process.stdout.close()
    assert cancel(own.path).jobs == 0
    with pytest.raises(ConfigError, match="one of the runs of it"):
        cancel(job.path)


def test_another_folder_is_not_a_sweep(tmp_path: Path) -> None:
    for verb in (overview, cancel):
        with pytest.raises(ConfigError, match="not the folder of a sweep"):
            verb(tmp_path)


def test_status_shows_all_sweeps_or_the_named_one(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAIR2_EXP_ROOT", str(tmp_path))
    write_jobs(sweep, [("unet", 1, _run(sweep, "a", FINISHED)), ("utt", 1, RunFolder(sweep / "b"))])
    assert list(sweeps_below(tmp_path / "multirun")) == [sweep]
    for words in ((), ("it",), (str(sweep),)):
        shown = answer("status", *words)
        assert shown.status == 0
        assert "2 jobs: 1 done, 1 waiting" in shown.out
        assert str(sweep) in shown.out
    missing = answer("status", "nowhere")
    assert missing.status == 1
    assert "no sweep of this name" in missing.err
    assert answer("cancel").status == 2


def test_a_run_at_work_has_its_pace_and_its_process(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAIR2_EXP_ROOT", str(tmp_path))
    single = RunFolder(tmp_path / "outputs" / "it" / "time")
    now = time.time()
    for own in (single, RunFolder(sweep / "0")):
        own.path.mkdir(parents=True)
        own.config.write_text("trainer:\n  max_epochs: 10\n")
        own.history.write_text("epoch,val/miou\n1,0.1\n2,0.2\n")
        begun = int(1000 * (now + 5))
        RunRecord({str(Tag.ROW): "it"}, start=begun, resumed=begun).write(own)
        os.utime(own.history, (now + 25, now + 25))
    with locked(single.path), locked(sweep / "0"):
        (job,) = overview(sweep)
        shown = answer("status", "--json")
        table = answer("status")
    assert job.seconds_per_epoch == pytest.approx(10, abs=0.01)
    assert job.seconds_left == pytest.approx(80, abs=0.1)
    assert job.process == f"process {os.getpid()} on {socket.gethostname()}"
    groups = {group["folder"]: group["jobs"] for group in json.loads(shown.out)}
    assert set(groups) == {str(sweep), str(tmp_path / "outputs")}
    assert [each["state"] for jobs in groups.values() for each in jobs] == ["running"] * 2
    assert groups[str(sweep)][0]["seconds_left"] == pytest.approx(80, abs=0.1)
    assert "1:20 min" in table.out
    assert "resume" not in table.out
    assert answer("status").out.count("running") == 0  # nobody holds them any more


@pytest.mark.parametrize(
    ("resumed", "written", "pace"),
    [
        (-50, -60, None),  # by the process before, while this one prepares
        (5, -60, None),  # no epoch has ended since; a row is of what was trained after a checkpoint
        (5, 35, 15.0),  # two epochs have
    ],
)
def test_a_resumed_run_has_the_pace_of_what_was_trained_since(
    sweep: Path, resumed: int, written: int, pace: float | None
) -> None:
    own, now = RunFolder(sweep / "0"), time.time()
    own.path.mkdir()
    own.config.write_text("trainer:\n  max_epochs: 10\n")
    own.history.write_text("epoch,val/miou\n" + "".join(f"{n},0.1\n" for n in (4, 5, 6, 7)))
    os.utime(own.history, (now + written, now + written))
    record = RunRecord({}, start=1000, resumed=int(1000 * (now + resumed)), resumed_epochs=5)
    record.write(own)
    with locked(own.path):
        (job,) = overview(sweep)
    left = None if pace is None else pytest.approx(3 * pace, abs=0.1)
    assert (job.state, job.epoch, job.epochs) == ("running", 7, 10)
    assert job.seconds_per_epoch == (None if pace is None else pytest.approx(pace, abs=0.01))
    assert job.seconds_left == left


def test_the_written_jobs_lead_to_their_folders_wherever_the_sweep_is_moved(
    sweep: Path, tmp_path: Path
) -> None:
    write_jobs(sweep, [("unet", 1, _run(sweep, "a/b", FINISHED))])
    moved = sweep.rename(tmp_path / "elsewhere")
    assert [(job.row, job.state) for job in overview(moved)] == [("unet", "done")]
    assert written(RunFolder(moved), "jobs.json")


def test_a_job_that_a_process_is_at_work_in_is_not_said_to_be_resumed(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "seed=1,2", "tracking=off", "preset=debug")
    for job in jobs:
        RunRecord.of(job.config, "data", job.folder).write(job.folder)
        job.refresh()
    with locked(jobs[0].folder.path):
        lines = job_table(jobs).splitlines()
    assert [line.split()[4] for line in lines[1:3]] == ["running", "resume"]
