"""The options of the engines: `hydra.launcher.*` after `hydra/launcher=slots|slurm|ray`.

They say where jobs run, and no result depends on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from flair2_exp.config.fields import Group, option
from flair2_exp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Group):
    """What all engines have in common."""

    node: ClassVar[str] = "hydra.launcher"
    decides: ClassVar[bool] = False

    retries: int = option(2, 0, 1000)
    """How often a job that was killed, or found its GPU full, is started again. A start that got
    beyond the checkpoint of the one before does not count. A failure of the code is final."""
    gpus_per_job: float | None = option(None, 0.0, 4096.0)
    """GPUs of each job, on each of its machines; 0.5: two jobs share one; null: as many as
    `trainer.devices`, none where it trains on the processor."""
    cores_per_job: int | None = option(None, 1, 4096)
    """Processor cores of each job, on each of its machines; null: the engine's choice."""

    def validate(self) -> None:
        """Refuse one and a half GPUs."""
        wanted = self.gpus_per_job
        if wanted is not None and wanted > 1 and wanted != int(wanted):
            raise ConfigError(
                f"hydra.launcher.gpus_per_job={wanted:g}: expected a whole number, or a part of 1 "
                "for jobs that share a GPU."
            )


@dataclass(frozen=True, kw_only=True)
class SlotsConfig(EngineConfig):
    """`hydra/launcher=slots`: several jobs at a time on this machine."""

    slots: int | None = option(None, 1, 1024)
    """Jobs at a time; null: as many as the GPUs allow, or without a GPU one job for every two
    cores."""
    stagger: float = option(1.0, 0.0, 3600.0)
    """Seconds between two starts, so that they do not all read the same files at once."""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(EngineConfig):
    """`hydra/launcher=slurm`: jobs in SLURM's queue; `hydra/launcher/site=NAME` sets a site's."""

    at_once: int | None = option(None, 1, 100_000)
    """Jobs that run at the same time, those of earlier commands included; null: as many as SLURM
    allows."""
    time: str | None = None
    """Time limit of a job, as `20:00:00` or `1-12:00:00`; a longer training resumes in further
    jobs. null: the site's."""
    grace: int = option(120, 10, 3600)
    """Seconds before the time limit at which a job is asked to write its checkpoint and to queue
    again. Choose more than a batch and a checkpoint take; SLURM may send the signal a minute
    earlier."""
    account: str | None = None
    """The account that the jobs are charged to (`--account`)."""
    partition: str | None = None
    """The partition that the jobs run in (`--partition`)."""
    qos: str | None = None
    """The jobs' quality of service (`--qos`)."""
    constraint: str | None = None
    """Features that the jobs' nodes must have (`--constraint`)."""
    memory: str | None = None
    """Memory of each machine, as `64G`; null: the site's default."""
    gpus: str | None = None
    """The option of sbatch that asks for a machine's GPUs, with `{n}` for their number; null:
    `--gres=gpu:{n}`."""
    cores_per_process: int | None = option(None, 1, 4096)
    """Processor cores of each process (each device has one); null: `cores_per_job` shared out, or
    one more than `data.workers`."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, as `--exclusive`."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the command, as `module load python`."""
    interval: float = option(10.0, 0.2, 600.0)
    """Seconds between two looks into the queue."""

    def validate(self) -> None:
        """Refuse what sbatch would read otherwise than it is meant, or what the engine sets."""
        super().validate()
        limit = None if self.time is None else _seconds(str(self.time))
        if limit is None and self.time is not None:
            raise ConfigError(
                f"hydra.launcher.time={self.time}: expected HOURS:MINUTES:SECONDS or "
                "DAYS-HOURS:MINUTES:SECONDS; in a file within quotes, since YAML reads a number."
            )
        if limit is not None and limit < self.grace + _EARLY:
            raise ConfigError(
                f"hydra.launcher.time={self.time} leaves no time to train: expected two minutes "
                f"more than hydra.launcher.grace={self.grace} seconds."
            )
        if self.gpus is not None and "{n}" not in self.gpus:
            raise ConfigError(
                f"hydra.launcher.gpus={self.gpus}: expected {{n}} where the number of GPUs goes, "
                "as --gpus-per-node=a100:{n}."
            )
        part = self.gpus_per_job
        if part is not None and part != int(part):
            raise ConfigError(
                f"hydra.launcher.gpus_per_job={part:g}: SLURM gives a job whole GPUs; use 1."
            )
        for word in self.sbatch:
            name = word.split("=")[0].split()[0] if word.split() else word
            if name in _SET or not name.startswith("-"):
                reason = "is set by hydra/launcher=slurm" if name in _SET else "is not an option"
                raise ConfigError(f"hydra.launcher.sbatch: {word!r} {reason}.")


_EARLY: Final = 120
"""Seconds: SLURM may send its signal 60 s earlier than asked (sbatch(1)), and a job starts."""
_SET: Final = frozenset((
    "--array", "-a", "--job-name", "-J", "--output", "-o", "--error", "-e", "--open-mode",
    "--parsable", "--wrap", "--signal", "--requeue", "--no-requeue", "--nodes", "-N", "--ntasks",
    "-n", "--ntasks-per-node", "--cpus-per-task", "-c", "--dependency", "-d", "--chdir", "-D",
    "--wait", "-W", "--test-only", "--hold", "-H",
))  # fmt: skip
"""Options of sbatch that the engine gives."""


def _seconds(text: str) -> int | None:
    """Return how long a time limit of sbatch's is; None where it leaves doubt."""
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,4}):(\d\d):(\d\d)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True, kw_only=True)
class RayConfig(EngineConfig):
    """`hydra/launcher=ray`: jobs on a Ray cluster."""

    address: str | None = None
    """The cluster's address, as `10.0.0.5:6379`, or `auto` for the cluster of this machine; null:
    start one on this machine alone, which ends with the command."""
    at_once: int | None = option(None, 1, 100_000)
    """Jobs at a time; null: as many as the cluster's GPUs allow, or without a GPU one job for every
    two cores."""

    def validate(self) -> None:
        """Refuse the addresses of Ray's client, which is another way to connect."""
        super().validate()
        if self.address is not None and "://" in self.address:
            raise ConfigError(
                f"hydra.launcher.address={self.address}: expected HOST:PORT as `ray start --head` "
                "shows it, without a scheme, or auto."
            )
