"""`flair2-exp status` and `cancel`: where runs and the jobs of sweeps are, and how to end them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from flair2_exp.cli import shown
from flair2_exp.cli.verbs import verb
from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import SWEEP_CONFIG, run_folders
from flair2_exp.results.finding import multirun, results_folders
from flair2_exp.results.table import sweep_folder
from flair2_exp.sweeps.overview import (
    JobState,
    at_work,
    cancel,
    overview,
    state_of_run,
    sweeps_below,
)


@verb(
    "status",
    examples="""
    flair2-exp status                    # sweeps, and runs that are at work
    flair2-exp status leaderboard        # one sweep, by its name or its folder
    flair2-exp status outputs/unet/TIME  # one run
    flair2-exp status leaderboard --json | jq '.[].jobs[].state'
    """,
)
@click.argument("sweeps", nargs=-1, metavar="[SWEEP]...", type=shown.PLACE)
@shown.as_json
def status(sweeps: tuple[str, ...], as_json: bool) -> None:
    """Show how far sweeps, searches and runs are, from any terminal.

    Each job is waiting, queued, running, done, failed, stopped (the sweep's command resumes it),
    cancelled or unknown (its cluster does not answer). Everything is read from the folders.
    """
    groups = dict(_group(folder) for name in sweeps for folder in _folders(name))
    if not sweeps:
        groups = dict(map(_group, sweeps_below(multirun())))
        for folder in results_folders():
            if folder != multirun() and (single := at_work(folder)):
                groups[folder] = single
    if as_json:
        shown.print_json([{"folder": f, "jobs": list(map(_as_json, g))} for f, g in groups.items()])
    elif not groups:
        print(f"No sweep or search in {multirun()}, and no run at work.")
    for place, (folder, jobs) in enumerate({} if as_json else groups.items()):
        print("\n" if place else "", end="")
        _print(folder, jobs)


@verb(
    "cancel",
    examples="""
    flair2-exp cancel leaderboard                       # a sweep or a search
    flair2-exp cancel multirun/leaderboard/unet/seed=1  # one of its jobs
    flair2-exp cancel outputs/unet/TIME                 # a run of its own
    """,
)
@click.argument("sweeps", nargs=-1, required=True, metavar="SWEEP...", type=shown.PLACE)
def end(sweeps: tuple[str, ...]) -> int:
    """End the jobs of a sweep, a search or one run, each with a checkpoint.

    A sweep's command starts them again on request alone (`sweep.cancelled=resume`). The exit
    status is 1 where the sweep's command runs on another machine and goes on.
    """
    result = 0
    for folder in [each for name in sweeps for each in _folders(name)]:
        print(f"{folder}: ending its jobs, each with a checkpoint …", flush=True)
        done = cancel(folder)
        print(f"{folder}: {done.jobs} jobs cancelled")
        if done.elsewhere:
            result = 1
            print(f"  its command runs as {done.elsewhere} and starts what waits: end it there.")
    return result


def _folders(name: str) -> list[Path]:
    """Return the folders that a word means: sweeps, or a run."""
    folder = sweep_folder(name)
    return list(sweeps_below(folder)) or [folder]


def _group(folder: Path) -> tuple[Path, list[JobState]]:
    if (folder / SWEEP_CONFIG).is_file():
        return folder, overview(folder)
    runs = [state_of_run(each) for each in run_folders(folder)]
    if not runs:
        raise ConfigError(
            f"{folder} is not the folder of a sweep, a search or a run, and there is no run in it."
        )
    return folder, runs


def _print(folder: Path, jobs: Sequence[JobState]) -> None:
    """Print jobs and their states, one line each, and a sum."""
    from flair2_exp.report.words import duration, number

    head = ["row", " seed", "state", " epoch", " mIoU", " per epoch", " left", " since", "where"]
    rows = []
    for job in jobs:
        epochs = f"{job.epoch}/{job.epochs}" if job.epochs else str(job.epoch or shown.NOTHING)
        seed = str(job.seed) if job.seed >= 0 else shown.NOTHING
        times = (duration(each) for each in (job.seconds_per_epoch, job.seconds_left, job.seconds))
        place = ", ".join(dict.fromkeys(filter(None, (job.note, job.process))))
        rows.append([job.row, seed, job.state, epochs, number(job.score), *times, place])
    kept = [at for at, name in enumerate(head)
            if name not in (" per epoch", " left", " since", "where")
            or any(row[at] not in ("", shown.NOTHING) for row in rows)]  # fmt: skip
    shown.print_table(
        [head[at] for at in kept],
        [[row[at] for at in kept] for row in rows],
        title=str(folder),
        folded=("row", "where"),
    )
    counts = Counter(job.state for job in jobs)
    total = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    print(f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}: {total}", flush=True)


def _as_json(job: JobState) -> Mapping[str, Any]:
    return vars(job) | {"folder": job.folder.path, "seed": job.seed if job.seed >= 0 else None}
