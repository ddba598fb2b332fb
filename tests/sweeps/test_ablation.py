"""Whole sweeps that train: killed, taken up again, with failing jobs, and side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flair2_exp import locking
from flair2_exp.lifecycle.folder import RunFolder, run_folders
from flair2_exp.lifecycle.record import RUNNING, RunRecord, read_metrics
from flair2_exp.tracking.tags import Tag
from tests.commands import answer
from tests.configs import SMALL_SAMPLE
from tests.lifecycle.helpers import scores
from tests.sweeps.commands import LIMIT, client, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a command's own limit is below that

KILLING = Path(__file__).with_name("killing.py")
HERE = ("preset=debug", "trainer=cpu", *SMALL_SAMPLE)
SWEEP = (
    "--multirun", "model=unet,utt", "seed=1,2", "sweep.name=short", *HERE, "trainer.max_epochs=3",
)  # fmt: skip


def folders(root: Path, name: str = "short") -> list[RunFolder]:
    """The folders of a sweep's runs."""
    return list(run_folders(root / "multirun" / name))


def results(root: Path, name: str = "short") -> dict[str, dict[str, float]]:
    """The scores of finished jobs by folder, times left out."""
    measured = {each.path.name: read_metrics(each) for each in folders(root, name)}
    return {job: scores(metrics) for job, metrics in measured.items() if metrics}


def require_one_finished_run_each(root: Path, name: str, jobs: int) -> None:
    """Require that MLflow has one run for each job, finished, and all below one parent."""
    children = [run for run in runs(root, sweep=name) if Tag.SEED in run.data.tags]
    assert len(children) == len({run.data.tags[Tag.IDENTITY] for run in children}) == jobs
    assert {run.info.status for run in children} == {"FINISHED"}
    (parent,) = runs(root, kind="sweep")
    assert {run.data.tags[Tag.PARENT] for run in children} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep without any kill."""
    root = tmp_path_factory.mktemp("whole")
    done = answer(*SWEEP, f"paths.root={root}")
    assert done.status == 0, done.err[-2000:]
    return root


@pytest.mark.thorough
def test_a_sweep_killed_at_random_ends_as_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    line = [sys.executable, str(KILLING), "1", "6.0", *SWEEP, f"paths.root={tmp_path}"]
    done = subprocess.run(
        line, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.rsplit("kills: ", 1)[1]) >= 2
    assert len(results(tmp_path)) == 4
    assert results(tmp_path) == results(whole)
    require_one_finished_run_each(tmp_path, "short", 4)


def test_a_finished_sweep_has_its_report_and_is_not_run_again(whole: Path) -> None:
    report = json.loads((whole / "multirun/short/report/leaderboard.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["unet", "utt"]
    (parent,) = runs(whole, kind="sweep")
    kept = {item.path for item in client(whole).list_artifacts(parent.info.run_id, "report")}
    assert "report/leaderboard.html" in kept
    before = {each.metrics: each.metrics.stat().st_mtime_ns for each in folders(whole)}
    done = answer(*SWEEP, f"paths.root={whole}")
    assert done.status == 0, done.err[-2000:]
    assert "4 jobs, 4 done" in done.out
    page = whole / "multirun/short/report/leaderboard.html"
    assert done.out.splitlines()[-1] == f"report: {page}"
    assert "Test patches" in page.read_text()  # of unet and utt side by side
    assert {path: path.stat().st_mtime_ns for path in before} == before
    require_one_finished_run_each(whole, "short", 4)


def test_a_failing_job_does_not_lose_the_others(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.yaml"
    nowhere.write_text("train: [D999_2021]\nvalidation: [D999_2021]\ntest: [D999_2021]\n")
    line = (
        "--multirun", "model=unet", "seed=1,2", "split=official,file", f"split.file={nowhere}",
        "tracking=off", "sweep.name=some", *HERE, f"paths.root={tmp_path}",
    )  # fmt: skip
    done = answer(*line)
    assert done.status == 1
    assert "2 of the sweep's jobs are not done" in done.err
    assert f"report: {tmp_path}/multirun/some/report/leaderboard.html" in done.err
    assert "D999_2021" in done.err
    assert "Traceback" not in done.err
    assert len(results(tmp_path, "some")) == 2
    assert "4 jobs, 2 done" in answer(*line, "sweep.dry_run=true").out
    first_refused = [each.replace("official,file", "file,official") for each in line]
    fast = answer(*first_refused, "sweep.name=fast", "sweep.fail_fast=true")
    assert fast.status == 1
    assert fast.err.count("not started") == 3
    assert results(tmp_path, "fast") == {}


@pytest.mark.thorough
def test_jobs_run_two_at_a_time_on_one_database(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `parallel`")
    done = answer(
        "--multirun", "model=unet", "seed=1,2,3,4", "sweep.name=beside", *HERE,
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"paths.root={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.err[-2000:]
    assert len(results(tmp_path, "beside")) == 4
    require_one_finished_run_each(tmp_path, "beside", 4)


def running(root: Path, name: str) -> list[RunFolder]:
    """The folders of the jobs that are being run."""
    begun = {each: RunRecord.read(each) for each in folders(root, name)}
    return [each for each, record in begun.items() if record and record.status == RUNNING]


@pytest.mark.thorough
def test_a_killed_worker_of_a_parallel_sweep_loses_and_doubles_nothing(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `parallel`")
    command = (
        sys.executable, "-m", "flair2_exp", "--multirun", "model=unet", "seed=1,2,3", *HERE,
        "trainer.max_epochs=6", "sweep.name=beside", "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2", f"paths.root={tmp_path}",
    )  # fmt: skip
    with (tmp_path / "output").open("w") as output:
        started = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdout=output, stderr=output
        )
        while started.poll() is None and len(running(tmp_path, "beside")) < 2:
            time.sleep(0.05)
        holder = (running(tmp_path, "beside")[0].path / locking.FILE).read_text()
        os.kill(int(holder.split()[1]), signal.SIGKILL)
        assert started.wait(LIMIT) == 0, (tmp_path / "output").read_text()[-2000:]
    assert len(results(tmp_path, "beside")) == 3
    require_one_finished_run_each(tmp_path, "beside", 3)
