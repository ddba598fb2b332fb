"""The groups of many runs: sweep and tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from flair2_exp.config.fields import Group, option, require_usable


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Group):
    """Many runs: what `sweep=...` and `--multirun` do besides running them."""

    node: ClassVar[str] = "sweep"
    decides: ClassVar[bool] = False

    name: str = option("sweep", chosen=True)
    """The sweep's folder below multirun/, and its parent run in MLflow."""
    dry_run: bool = False
    """Show the jobs and stop."""
    fail_fast: bool = False
    """Stop at the first failing job."""
    wait: bool = True
    """Wait for the jobs and report; false: leave them to SLURM, the same command takes them up."""
    cancelled: Literal["keep", "resume"] = "keep"
    """Whether jobs that were cancelled (`scancel`, `flair2-exp cancel`) are started again."""
    report: bool = True
    """Write a leaderboard with intervals at the end."""
    baseline: str | None = None
    """The row that others are compared with; null: the first."""
    factors: tuple[str, ...] | None = None
    """Options of a full factorial whose effects are estimated."""
    difference: float | None = option(None, 1e-6, 1.0)
    """A difference in mIoU to plan for: plan and report say how many seeds it needs."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(Group):
    """A search for good options: what `tune=...` does; the space stands in `hydra.sweeper`."""

    node: ClassVar[str] = "tune"
    decides: ClassVar[bool] = False

    name: str = "study"
    """The study's name, and what its best is called."""
    n_trials: int = option(40, 1, 1_000_000)
    """Complete and pruned trials of the study in all, whoever runs them and however often."""
    storage: str | None = None
    """A journal's path or a database's URL without a password; null: in the sweep's folder."""
    max_failures: int | None = option(5, 1, 1_000_000)
    """Failed trials that end the search; null: never."""
    on_change: Literal["refuse", "new_study"] = "refuse"
    """`refuse` a study of another search space or direction, or open a `new_study` beside it."""
    repeat_best: int = option(0, 0, 1000)
    """Seeds with which the best and the default are trained and compared in the end; 0: none."""

    def validate(self) -> None:
        """Refuse a storage that no file can be."""
        scheme, slashes, path = (self.storage or "").rpartition(":///")
        if not slashes or scheme.startswith("sqlite"):
            require_usable("tune.storage", path)
