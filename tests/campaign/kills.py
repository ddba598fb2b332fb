"""Kill sweeps and searches at random moments: `python -m tests.campaign.kills --kills 100`.

Four kinds take turns, each in a new folder: an ablation sweep, one with two jobs at a time
(joblib), a search on a grid, and a joblib sweep of which single workers are killed. A command is
killed with all its processes (SIGKILL), typed again, and killed again, until it ends by itself.
Then every score must equal that of the same command never killed, and MLflow must have one finished
run per job, below one finished parent. Prints a line per round and the sum; exits 1 where anything
was lost, doubled or different. `--kinds sweep,grid` picks kinds, `--seed` the moments.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flair2_exp import locking
from flair2_exp.lifecycle.folder import run_folders
from flair2_exp.lifecycle.record import RUNNING, RunRecord, read_metrics
from flair2_exp.tracking.tags import Tag
from tests.configs import SMALL_SAMPLE
from tests.lifecycle.helpers import scores
from tests.sweeps.commands import client
from tests.sweeps.killing import wait

HERE: Final = (*SMALL_SAMPLE, "preset=debug", "trainer=cpu", "trainer.max_epochs=3")
JOBLIB: Final = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SWEEP: Final = ("--multirun", "model=unet,utt", "seed=1,2,3", "sweep.name=campaign", *HERE)
GRID: Final = """# @package _global_
defaults:
  - /hydra/tune/search
  - _self_
  - override /model: unet
  - override /data: aerial_only
  - override /hydra/sweeper/sampler: grid
  - override /hydra/sweeper/pruner: none
objective: val/miou
tune:
  name: campaign
  n_trials: 6
hydra:
  sweeper:
    params:
      optimizer.lr: 0.001,0.01
      aug: none,flips,d4
"""
LONGEST: Final = 12.0
"""Seconds within which a command is killed: about what it needs to end by itself."""
MOST_KILLS: Final = 8
"""Of one round; then the command may end, so that a round does."""


@dataclass(frozen=True)
class Kind:
    """One kind of command to kill."""

    arguments: tuple[str, ...]
    jobs: int
    kill: Callable[[int, Path, random.Random], None]
    """Kill the command of this process id and folder, or a part of it."""
    ends: bool = True
    """Whether that ends the command."""
    parent: str = "sweep"


def kill_all(pid: int, root: Path, moments: random.Random) -> None:
    """Kill the command and all its processes."""
    del root, moments
    os.killpg(pid, signal.SIGKILL)


def kill_a_worker(pid: int, root: Path, moments: random.Random) -> None:
    """Kill one of the processes that run a job; nothing where no job runs just now."""
    del pid
    folders = list(run_folders(root / "multirun"))
    records = [RunRecord.read(folder) for folder in folders]
    locks = [
        folder.path / locking.FILE
        for folder, record in zip(folders, records, strict=True)
        if record is not None and record.status == RUNNING
    ]
    holders = [int(lock.read_text().split()[1]) for lock in locks if lock.is_file()]
    with contextlib.suppress(IndexError, ProcessLookupError):
        os.kill(moments.choice(holders), signal.SIGKILL)


def kinds(configs: Path) -> dict[str, Kind]:
    """The kinds by name; `configs` is a folder for the search's config."""
    (configs / "tune").mkdir(parents=True)
    (configs / "tune/campaign.yaml").write_text(GRID)
    search = ("--config-dir", str(configs), "tune=campaign", *HERE)
    return {
        "sweep": Kind(SWEEP, 6, kill_all),
        "joblib": Kind((*SWEEP, *JOBLIB), 6, kill_all),
        "grid": Kind(search, 6, kill_all, parent="study"),
        "workers": Kind((*SWEEP, *JOBLIB), 6, kill_a_worker, ends=False),
    }


@dataclass
class Round:
    """What a command left, and how often it was killed."""

    root: Path
    kills: int = 0
    status: int | None = None
    faults: list[str] = field(default_factory=list)

    def results(self) -> dict[str, dict[str, float]]:
        """The scores of finished runs by their identity."""
        by_name: dict[str, dict[str, float]] = {}
        for folder in run_folders(self.root / "multirun"):
            record, metrics = RunRecord.read(folder), read_metrics(folder)
            if metrics and record is not None:
                name = record.identity
                if name in by_name:
                    self.faults.append(f"{name} was run twice")
                by_name[name] = scores(metrics)
        return by_name

    def check(self, kind: Kind, expected: dict[str, dict[str, float]]) -> None:
        """Compare with the command that was never killed, and look at MLflow."""
        if self.status:
            self.faults.append(f"ended with {self.status}")
        results = self.results()
        for name in expected.keys() | results:
            if name not in results:
                self.faults.append(f"{name} is lost")
            elif name not in expected:
                self.faults.append(f"{name} is too many")
            elif results[name] != expected[name]:
                self.faults.append(f"{name} has other scores")
        runs = client(self.root).search_runs(["1"])
        jobs = [each for each in runs if Tag.SEED in each.data.tags]
        parents = [each for each in runs if each.data.tags.get(Tag.KIND) == kind.parent]
        counts = Counter(each.info.status for each in [*jobs, *parents])
        if (len(jobs), len(parents)) != (kind.jobs, 1) or counts != {"FINISHED": kind.jobs + 1}:
            self.faults.append(f"MLflow has {len(jobs)} jobs, {len(parents)} parents: {counts}")
            self.faults += [
                f"{run.info.run_id} {run.info.status}: {run.data.tags.get(Tag.FOLDER)}"
                for run in runs
                if run.info.status != "FINISHED"
            ]
        left = [each for each in self.root.rglob("unsent")]
        if left:
            self.faults.append(f"{left[0]} is left")


def start(arguments: tuple[str, ...], root: Path, log: Path) -> int:
    """Start the command in a fork, with the heavy imports done; return its process id."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from flair2_exp.cli.main import main as command

    status = 1
    try:
        command([*arguments, f"paths.root={root}"])
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


def play(kind: Kind, root: Path, moments: random.Random | None) -> Round:
    """Run a command, killed at these moments, until it ends by itself."""
    result = Round(root)
    typed_at = 0
    while result.status is None:
        pid = start(kind.arguments, root, root / "log.txt")
        killed = False
        while not killed:
            patient = moments is None or result.kills >= MOST_KILLS
            seconds = 3600.0 if patient or moments is None else moments.uniform(0.5, LONGEST)
            status = wait(pid, seconds)
            if status is not None:
                # A job whose worker was killed twice is given up, and the command says to type it
                # again; so the user does.
                again = status == 1 and not kind.ends and result.kills > typed_at
                result.status, typed_at = None if again else status, result.kills
                break
            assert moments is not None
            kind.kill(pid, root, moments)
            result.kills += 1
            killed = kind.ends
        if killed:
            os.waitpid(pid, 0)
    return result


def _import_what_is_heavy() -> None:
    import lightning
    import mlflow
    import optuna
    import segmentation_models_pytorch
    import torch

    import flair2_exp.lifecycle.experiment
    import flair2_exp.training.task

    assert all(
        (lightning, mlflow, optuna, segmentation_models_pytorch, flair2_exp.lifecycle.experiment)
    )
    torch.set_num_threads(1)


def main() -> int:
    """Play rounds until there were enough kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills in all (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--kinds", default="sweep,joblib,grid,workers")
    arguments = parser.parse_args()
    _import_what_is_heavy()
    moments = random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    faulty = rounds = 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills_") as name:
        place = Path(name)
        every = kinds(place / "configs")
        chosen = {each: every[each] for each in arguments.kinds.split(",")}
        expected: dict[tuple[str, ...], dict[str, dict[str, float]]] = {}
        while sum(counts.values()) < arguments.kills:
            for each, kind in chosen.items():
                basis = tuple(word for word in kind.arguments if word not in JOBLIB)
                if basis not in expected:
                    (root := place / f"never_{len(expected)}").mkdir()
                    expected[basis] = play(kind, root, None).results()
                    print(f"{each}, never killed: {len(expected[basis])} scores", flush=True)
                (root := place / f"{each}_{rounds}").mkdir()
                result = play(kind, root, moments)
                result.check(kind, expected[basis])
                counts[each] += result.kills
                rounds += 1
                faulty += bool(result.faults)
                print(
                    f"{each}: {result.kills} kills; {result.faults or 'as if never killed'}",
                    flush=True,
                )
                if result.faults:
                    print((root / "log.txt").read_text()[-3000:], flush=True)
    minutes = (time.monotonic() - begun) / 60
    kills = f"{sum(counts.values())} kills {dict(counts)}"
    print(f"{kills} in {rounds} rounds, {faulty} of them faulty; {minutes:.0f} min")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
