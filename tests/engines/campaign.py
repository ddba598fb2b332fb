"""A sweep of six jobs and what happens to it: the same whatever runs the jobs.

The jobs train for some seconds on the synthetic sample, on one thread, so that a score depends on
nothing but the experiment: each is compared with that of a sweep that nothing happened to.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flair2_exp.engines.job import Submission
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.locking import holder_of

ROWS, SEEDS, EPOCHS = ("unet", "linknet"), (1, 2, 3), 40
TIMEOUT = 540.0
"""Seconds that anything may take: a job that SLURM requeues begins again after two minutes."""


def folders(root: Path) -> dict[tuple[str, int], RunFolder]:
    """The folders of the sweep's jobs below a root, by row and seed."""
    sweep = root / "multirun/six"
    return {(row, seed): RunFolder(sweep / f"{row}/seed={seed}") for row in ROWS for seed in SEEDS}


@dataclass
class Sweep:
    """The command of the six jobs, and its process.

    Attributes:
        root: Where everything goes.
        launcher: Overrides that choose the engine.
        log: Of all starts of the command.
    """

    root: Path
    launcher: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.log = self.root / "command.log"

    def command(self, *further: str) -> list[str]:
        """The command line."""
        return [
            sys.executable, "-m", "flair2_exp", "--multirun",
            f"model={','.join(ROWS)}", f"seed={','.join(map(str, SEEDS))}", "data=aerial_only",
            "preset=debug", f"trainer.max_epochs={EPOCHS}", "trainer.limit_train_batches=4",
            "trainer.threads=1", "trainer.accelerator=cpu", "callbacks.resume.save_minutes=0.01",
            f"paths.root={self.root}", "sweep.name=six",
            "hydra.sweep.subdir='${name}/seed=${seed}'", *self.launcher, *further,
        ]  # fmt: skip

    def start(self, *further: str) -> None:
        """Give the command."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*further), stdout=log, stderr=log, start_new_session=True
            )

    def end(self, status: int | None = 0) -> None:
        """Wait for the command's end."""
        assert self.process is not None
        found = self.process.wait(TIMEOUT)
        assert status is None or found == status, self.log.read_text()[-5000:]

    def kill(self) -> None:
        """Kill the command outright, and nothing else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def terminate(self) -> None:
        """Ask the command to end, and wait."""
        assert self.process is not None
        self.process.terminate()
        self.end(143)

    def run(self, *further: str) -> None:
        """Give the command and wait."""
        self.start(*further)
        self.end()


def epochs_of(folder: RunFolder) -> int:
    """How many epochs a run has behind it."""
    try:
        return max(0, len(folder.history.read_text().splitlines()) - 1)
    except OSError:
        return 0


def job_process(folder: RunFolder) -> int:
    """The number of the process that is at work in a folder of this machine."""
    text = (folder.path / ".lock").read_text()
    return int(text.split()[1])


def until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    """Wait for a condition; fail where it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come that {what}"
        time.sleep(0.05)


def one_in_training(jobs: Iterable[RunFolder], draw: random.Random) -> RunFolder:
    """Wait until one of the jobs has some epochs behind it and more to come; return it."""
    epochs, found = draw.randint(1, 6), list[RunFolder]()

    def look() -> bool:
        found[:] = [
            job for job in jobs if epochs <= epochs_of(job) < EPOCHS and holder_of(job.path)
        ]
        return bool(found)

    until(look, "a job trains")
    return draw.choice(found)


def finished(folder: RunFolder) -> bool:
    """Whether a run is done."""
    record = RunRecord.read(folder)
    return record is not None and record.is_done(test=True)


def kill_job(folder: RunFolder) -> None:
    """Kill a run's process outright."""
    os.kill(job_process(folder), signal.SIGKILL)


def results(root: Path) -> dict[tuple[str, int], Any]:
    """Scores and counts of each job, and the losses of each epoch; all must be done."""
    found = {}
    for name, folder in folders(root).items():
        assert finished(folder), f"{folder} is not done"
        record = RunRecord.read(folder)
        assert record is not None
        assert (record.row, record.seed) == name, f"{folder} holds another job's run"
        timed = ("seconds", "inference/")
        scores = {n: v for n, v in record.scores.items() if not any(t in n for t in timed)}
        with np.load(folder.confusion) as counts:
            confusion = counts["confusion"].tolist()
        found[name] = (scores, confusion, record.identity)
    return found


def require_whole(root: Path) -> None:
    """Each job once: no other folder, and in MLflow a finished run per job below one parent."""
    sweep = root / "multirun/six"
    records = {path.parent for path in sweep.rglob("run.json")}
    assert records == {folder.path for folder in folders(root).values()}
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    parents = [run for run in runs if run.data.tags.get("flair2.kind") == "sweep"]
    jobs = [run for run in runs if run not in parents]
    assert len(parents) == 1
    assert {run.info.status for run in jobs} == {"FINISHED"}
    named = sorted((run.data.tags["flair2.row"], run.data.tags["flair2.seed"]) for run in jobs)
    assert named == sorted((row, str(seed)) for row in ROWS for seed in SEEDS)
    parent = parents[0].info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {parent}


def starts_of(folder: RunFolder) -> int:
    """How often an engine has started a run."""
    return folder.output.read_text().count("=== start ")


def job_id(folder: RunFolder) -> str:
    """The id that an engine knows a job by."""
    submission = Submission.read(folder)
    return "" if submission is None else submission.id


def states(root: Path) -> dict[str, int]:
    """How many jobs are in each state, as `status` prints it."""
    words = [sys.executable, "-m", "flair2_exp", "status", str(root / "multirun/six")]
    answer = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    total = answer.stdout.strip().splitlines()[-1].partition(": ")[2]
    return {each.split()[1]: int(each.split()[0]) for each in total.split(", ")}
