"""Sweeps that are killed, fail, are taken up again, and run side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flair2_exp import locking
from flair2_exp.run import record as run_state
from flair2_exp.run.record import RunState
from tests.configs import SMALL_SAMPLE
from tests.test_experiment import scores

pytestmark = pytest.mark.timeout(900)  # a whole sweep, whose own limit is below

LIMIT = 840
"""Seconds for one command: it is to end before pytest ends the test, and to show what it said."""

KILLING = Path(__file__).with_name("killing.py")
SWEEP = (
    "--multirun", "model=unet,utt", "seed=1,2,3", "preset=debug", "trainer=cpu",
    "sweep.name=short", "trainer.max_epochs=3", *SMALL_SAMPLE,
)  # fmt: skip


def sweep(
    root: Path, *arguments: str, kill: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command with `root` as its place; killed after random times below `kill` seconds."""
    program = ["-m", "flair2_exp"] if kill is None else [str(KILLING), "1", str(kill)]
    return subprocess.run(
        [sys.executable, *program, *arguments, f"paths.root={root}"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=LIMIT,
    )  # fmt: skip


def results(root: Path, name: str = "short") -> dict[str, dict[str, float]]:
    """Scores by job folder, times left out."""
    found = sorted((root / "multirun" / name).glob("*/metrics.json"))
    return {path.parent.name: scores(json.loads(path.read_text())) for path in found}


def client(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")


def runs(root: Path, **tags: str) -> list[Any]:
    """All MLflow runs with these tags (`flair2.` left out of their names)."""
    wanted = " and ".join(f"tags.`flair2.{name}` = '{value}'" for name, value in tags.items())
    return list(client(root).search_runs(["1"], wanted))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep without any kill."""
    root = tmp_path_factory.mktemp("whole")
    done = sweep(root, *SWEEP)
    assert done.returncode == 0, done.stderr[-2000:]
    return root


@pytest.mark.slow
def test_a_sweep_killed_at_random_ends_as_one_that_was_not(whole: Path, tmp_path: Path) -> None:
    done = sweep(tmp_path, *SWEEP, kill=12.0)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.rsplit("kills: ", 1)[1]) >= 2
    assert len(results(tmp_path)) == 6
    assert results(tmp_path) == results(whole)
    children = [run for run in runs(tmp_path, sweep="short") if "flair2.seed" in run.data.tags]
    assert len(children) == len({run.data.tags["flair2.identity"] for run in children}) == 6
    assert {run.info.status for run in children} == {"FINISHED"}
    (parent,) = runs(tmp_path, kind="sweep")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"


@pytest.mark.slow
def test_a_finished_sweep_is_not_run_again(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("multirun/short/*/metrics.json")}
    done = sweep(whole, *SWEEP)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6 jobs, 6 done" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(runs(whole, kind="sweep")) == 1


@pytest.mark.slow
def test_the_report_is_written_and_kept_with_the_parent(whole: Path) -> None:
    report = json.loads((whole / "multirun/short/report/leaderboard.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["unet", "utt"]
    (parent,) = runs(whole, kind="sweep")
    kept = {item.path for item in client(whole).list_artifacts(parent.info.run_id, "report")}
    assert "report/leaderboard.html" in kept


@pytest.mark.slow
def test_a_failing_job_does_not_lose_the_others(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.yaml"
    nowhere.write_text("train: [D999_2021]\nvalidation: [D999_2021]\ntest: [D999_2021]\n")
    arguments = (
        "--multirun", "model=unet", "seed=1,2", "split=official,file", f"split.file={nowhere}",
        "preset=debug", "trainer=cpu", "sweep.name=some", *SMALL_SAMPLE,
    )  # fmt: skip
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 1
    assert "2 of the sweep's jobs are not done" in done.stderr
    assert "D999_2021" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(results(tmp_path, "some")) == 2
    again = sweep(tmp_path, *arguments)
    assert "4 jobs, 2 done" in again.stdout
    first_refused = [each.replace("official,file", "file,official") for each in arguments]
    fast = sweep(tmp_path / "fast", *first_refused, "sweep.fail_fast=true")
    assert fast.returncode == 1
    assert fast.stderr.count("not started") == 3
    assert results(tmp_path / "fast", "some") == {}


@pytest.mark.slow
def test_jobs_run_two_at_a_time_on_one_database(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `parallel`")
    arguments = (
        "--multirun", "model=unet", "seed=1,2,3,4,5,6,7,8,9,10,11,12", "preset=debug",
        "trainer=cpu", "sweep.name=beside", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        *SMALL_SAMPLE,
    )  # fmt: skip
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(results(tmp_path, "beside")) == 12
    children = [run for run in runs(tmp_path, sweep="beside") if "flair2.seed" in run.data.tags]
    assert sorted(int(run.data.tags["flair2.seed"]) for run in children) == list(range(1, 13))
    assert {run.info.status for run in children} == {"FINISHED"}


def running(root: Path, name: str) -> list[Path]:
    """The folders of the jobs that are being run."""
    found = []
    for path in (root / "multirun" / name).glob("*/run.json"):
        state = RunState.read(path.parent)
        if state is not None and state.status == run_state.RUNNING:
            found.append(path.parent)
    return found


@pytest.mark.slow
def test_a_killed_worker_of_a_parallel_sweep_loses_and_doubles_nothing(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra `parallel`")
    command = (
        sys.executable, "-m", "flair2_exp", "--multirun", "model=unet", "seed=1,2,3",
        "preset=debug", "trainer=cpu", "trainer.max_epochs=6", "sweep.name=beside",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SMALL_SAMPLE, f"paths.root={tmp_path}",
    )  # fmt: skip
    with (tmp_path / "said").open("w") as said:
        started = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=said, stderr=said)
        while started.poll() is None and len(running(tmp_path, "beside")) < 2:
            time.sleep(0.05)
        worker = (running(tmp_path, "beside")[0] / locking.FILE).read_text().split()[1]
        os.kill(int(worker), signal.SIGKILL)
        assert started.wait(LIMIT) == 0, (tmp_path / "said").read_text()[-2000:]
    assert len(results(tmp_path, "beside")) == 3
    children = [run for run in runs(tmp_path, sweep="beside") if "flair2.seed" in run.data.tags]
    assert sorted(run.data.tags["flair2.seed"] for run in children) == ["1", "2", "3"]
    assert {run.info.status for run in children} == {"FINISHED"}


def test_a_dry_run_shows_the_jobs_and_imports_nothing_heavy(tmp_path: Path) -> None:
    arguments = ["flair2-exp", *SWEEP, "sweep.dry_run=true", f"paths.root={tmp_path}"]
    program = (
        "import sys\n"
        f"sys.argv = {arguments!r}\n"
        "from flair2_exp.__main__ import main\n"
        "main()\n"
        "print('heavy:', sorted({'torch', 'lightning', 'mlflow', 'optuna'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "6 jobs, 0 done; to go: unknown" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("heavy: []")
    assert list(tmp_path.iterdir()) == []
