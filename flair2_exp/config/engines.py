"""The options of the engines: `hydra.launcher.*` after `hydra/launcher=slots|slurm|ray`.

They say where jobs run, and no result depends on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flair2_exp.config.fields import Group, option
from flair2_exp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Group):
    """What all engines have in common."""

    node: ClassVar[str] = "hydra.launcher"
    decides: ClassVar[bool] = False

    retries: int = option(2, 0, 1000)
    """How often a job is started again that was killed, or found no room on its GPU. Starts that
    got beyond the checkpoint of the one before do not count. A failure of the code is final."""
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
    """Jobs at a time; null: as the GPUs allow, without any one for every two cores."""
    stagger: float = option(1.0, 0.0, 3600.0)
    """Seconds between two starts, so that they do not all read the same files at once."""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(EngineConfig):
    """`hydra/launcher=slurm`: jobs in SLURM's queue; `hydra/launcher/site=NAME` sets a site's."""

    at_once: int | None = option(None, 1, 100_000)
    """Jobs that run at the same time; null: as many as SLURM lets."""
    time: str | None = None
    """Time limit of a job, as `20:00:00`; a longer training resumes in further jobs."""
    grace: int = option(120, 10, 3600)
    """Seconds before the time limit at which a job writes its checkpoint and queues again."""
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    memory: str | None = None
    """Of each machine, as `64G`; null: the site's default."""
    gpus: str | None = None
    """How GPUs are asked for, `{n}` their number; null: `--gres=gpu:{n}`."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, as `--exclusive`."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the command, as `module load python`."""
    interval: float = option(10.0, 0.2, 600.0)
    """Seconds between two looks into the queue."""


@dataclass(frozen=True, kw_only=True)
class RayConfig(EngineConfig):
    """`hydra/launcher=ray`: jobs on a Ray cluster."""

    address: str | None = None
    """Of the cluster, as `10.0.0.5:6379`, or `auto` for the one of this machine; null: a new one of
    this machine alone, which ends with the command."""
    at_once: int | None = option(None, 1, 100_000)
    """Jobs at a time; null: as the cluster's GPUs allow, without any one for every two cores."""

    def validate(self) -> None:
        """Refuse the addresses of Ray's client, which is another way to connect."""
        super().validate()
        if self.address is not None and "://" in self.address:
            raise ConfigError(
                f"hydra.launcher.address={self.address}: expected HOST:PORT as `ray start --head` "
                "shows it, without a scheme, or auto."
            )
