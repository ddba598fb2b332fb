"""`python -m flair2_exp status` and `cancel`: where the jobs of sweeps are, and how to end them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flair2_exp.cli.verbs import PROGRAM, Parser
from flair2_exp.errors import ConfigError
from flair2_exp.sweeps.overview import JobState, cancel, overview, sweeps_below


def status(arguments: Sequence[str]) -> int:
    """Print where the jobs of sweeps and searches are.

    Returns:
        0.

    Raises:
        FlairError: There is no such sweep.
    """
    options = _parser("status", "Show how far sweeps and searches are, from their folders.", "*")
    chosen = options.parse_args(list(arguments)).sweeps
    folders = [sweep for name in chosen for sweep in _sweeps(name)]
    folders = folders if chosen else list(sweeps_below(_multirun()))
    if not folders:
        print(f"No sweep or search in {_multirun()}.")
    for place, folder in enumerate(folders):
        print(("\n" if place else "") + table(folder, overview(folder)), flush=True)
    return 0


def end(arguments: Sequence[str]) -> int:
    """End the jobs of a sweep, each with a checkpoint.

    Returns:
        0; 1 where the sweep's command runs on another machine and goes on.

    Raises:
        FlairError: There is no such sweep.
    """
    text = "End the jobs of a sweep, a search or one run, each with a checkpoint."
    options = _parser("cancel", text, "+").parse_args(list(arguments))
    result = 0
    for folder in [each for name in options.sweeps for each in _sweeps(name)]:
        print(f"{folder}: ending its jobs, each with a checkpoint …", flush=True)
        done = cancel(folder)
        print(f"{folder}: {done.jobs} jobs cancelled")
        if done.elsewhere:
            result = 1
            print(f"  its command runs as {done.elsewhere} and starts what waits: end it there.")
    return result


def table(folder: Path, jobs: Sequence[JobState]) -> str:
    """Return a sweep's jobs and their states, one line each, and a sum."""
    from flair2_exp.report.words import duration, number

    head = ("row", "seed", "state", "epoch", "mIoU", "since", "")
    rows = [head]
    for job in jobs:
        epochs = f"{job.epoch}/{job.epochs}" if job.epochs else str(job.epoch or "–")
        seed = str(job.seed) if job.seed >= 0 else "–"
        since, score = duration(job.seconds), number(job.score)
        rows.append((job.row, seed, job.state, epochs, score, since, job.note))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    counts = Counter(job.state for job in jobs)
    total = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    lines += [f"{len(jobs)} jobs: {total}"]
    return "\n".join([str(folder), *(line.rstrip() for line in lines)])


def _multirun() -> Path:
    return Path(os.environ.get("FLAIR2_EXP_ROOT") or ".") / "multirun"


def _sweeps(name: str) -> list[Path]:
    """Return the folders that a word means: a path, or the name of a sweep."""
    for folder in (Path(name), _multirun() / name):
        if folder.is_dir():
            return list(sweeps_below(folder)) or [folder]
    raise ConfigError(f"{name}: no such folder, and no sweep of this name in {_multirun()}.")


def _parser(verb: str, text: str, number: str) -> Parser:
    made = Parser(prog=f"{PROGRAM} {verb}", description=text)
    made.add_argument(
        "sweeps", nargs=number, metavar="SWEEP",
        help="a sweep's name or folder" + (" (default: all in multirun)" if number == "*" else ""),
    )  # fmt: skip
    return made
