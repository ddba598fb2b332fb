"""What a sweep will do, before it does anything: its jobs, who they are and how far they came.

Every job is composed, typed and checked by the rules across groups, so that an error in job 37 is
told before job 0 starts. Nothing heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from flair2_exp import identity, run_state, schema
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.results import METRICS
from flair2_exp.run_state import RunState

NEW, DONE, RESUME, FAILED = "new", "done", "resume", "failed"

UNKNOWN_DATA: Final = ""
"""Stands for the data's fingerprint, which only a run reads."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: Its place in the sweep, from 0.
        overrides: What sets it apart, as Hydra takes them.
        config: Its checked config.
        root: The sweep's folder.
        folder: Where it runs.
    """

    number: int
    overrides: tuple[str, ...]
    config: schema.Config
    root: Path
    folder: Path

    @property
    def row(self) -> str:
        """The row of the leaderboard that it belongs to."""
        return self.config.name

    @property
    def state(self) -> str:
        """`new`, `done`, `resume` or `failed`, as its folder says."""
        state = RunState.read(self.folder)
        if state is None:
            return NEW
        if state.status == run_state.FINISHED:
            return DONE
        return FAILED if state.status == run_state.FAILED else RESUME

    @property
    def identity(self) -> str:
        """The run's identity; before it has read its data, that of its config alone."""
        state = RunState.read(self.folder)
        return state.identity if state else identity.identity(self.config, UNKNOWN_DATA)

    @property
    def metrics(self) -> dict[str, float]:
        """What it measured; empty where it is not done."""
        try:
            metrics: dict[str, float] = json.loads((self.folder / METRICS).read_text())
        except (OSError, ValueError):
            return {}
        return metrics

    @property
    def seconds(self) -> float | None:
        """Training and inference time, where it is done."""
        metrics = self.metrics
        if "train/seconds" not in metrics:
            return None
        return metrics["train/seconds"] + metrics.get("inference/seconds", 0.0)


def split(lines: Sequence[str], params: dict[str, Any]) -> list[tuple[str, ...]]:
    """The jobs that Hydra's basic sweeper makes of a command's overrides, in its order.

    Args:
        lines: The overrides of the command line; they win over `params`.
        params: `hydra.sweeper.params` of the config.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parser = OverridesParser.create()
    own = [each for each in parser.parse_overrides(list(lines)) if not _is_hydras(each)]
    merged = [f"{key}={value}" for key, value in params.items()]
    merged += [each.input_line or "" for each in own]
    (batch,) = BasicSweeper.split_arguments(parser.parse_overrides(merged), max_batch_size=None)
    return [tuple(job) for job in batch]


def _is_hydras(override: Override) -> bool:
    return override.get_key_element().lstrip("+~").startswith("hydra")


def plan(jobs: Sequence[Sequence[str]], sweep: DictConfig) -> list[Job]:
    """Compose and check every job, and find out where each stands. Hydra must be initialised.

    Args:
        jobs: The overrides of each.
        sweep: `hydra.sweep`: `dir`, and `subdir` as it is written, uninterpolated.

    Raises:
        ConfigError: A job that cannot run, two different jobs with one folder, or a folder with a
            run of another experiment in it.
        HydraException: A job that does not compose.
    """
    planned: dict[Path, Job] = {}
    folder = Path(sweep.dir)
    # As the command has it: a job's own config does not hold the command's `hydra.` overrides.
    subdir = OmegaConf.to_container(sweep, resolve=False).get("subdir")  # type: ignore[union-attr]
    composed = [_job(number, tuple(job), folder, subdir) for number, job in enumerate(jobs)]
    for number, job in enumerate(_named_apart(composed, subdir)):
        twin = planned.get(job.folder)
        if twin is None:
            planned[job.folder] = job
        elif twin.identity != job.identity:
            raise ConfigError(
                f"jobs {twin.number} ({' '.join(twin.overrides)}) and {number} "
                f"({' '.join(job.overrides)}) would share the folder {job.folder}.\n"
                "Put what sets them apart into hydra.sweep.subdir."
            )
    for job in planned.values():
        _require_same(job)
    return list(planned.values())


def _named_apart(jobs: Sequence[Job], subdir: str | None) -> list[Job]:
    """The jobs, renamed by what they sweep where several rows would have one name."""
    places = {(job.row, job.config.seed) for job in jobs}
    if len(places) == len(jobs):
        return list(jobs)
    lines = [dict(_key_and_value(line) for line in job.overrides) for job in jobs]
    keys = [key for key in lines[0] if len({str(line.get(key)) for line in lines}) > 1]
    apart = [key for key in keys if key != "seed"]
    if not apart:
        return list(jobs)
    renamed = []
    for job, line in zip(jobs, lines, strict=True):
        # A group's option says enough; a bare value needs its name: `lr=0.001`.
        words = [
            f"{key.rpartition('.')[2]}={line[key]}" if "." in key else str(line[key])
            for key in apart
        ]
        overrides = (*job.overrides, f"name='{'_'.join(words)}'")
        renamed.append(_job(job.number, overrides, job.root, subdir))
    return renamed


def _key_and_value(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key, value


def _job(number: int, overrides: tuple[str, ...], folder: Path, subdir: str | None) -> Job:
    whole = compose("config", list(overrides), return_hydra_config=True)
    with open_dict(whole):
        whole.hydra.job.num = number
        whole.hydra.job.id = str(number)
        if subdir is not None:
            whole.hydra.sweep.subdir = subdir
        subfolder = str(whole.hydra.sweep.subdir)
        del whole["hydra"]
    try:
        config = schema.typed(whole)
    except FlairError as error:
        raise ConfigError(f"job {number} ({' '.join(overrides)}): {error}") from error
    return Job(number, overrides, config, folder, folder / subfolder)


def _require_same(job: Job) -> None:
    """Refuse to mix results: whatever the folder holds must be this very experiment."""
    state = RunState.read(job.folder)
    if state is not None:
        known = str(state.deciding.get("fingerprint", UNKNOWN_DATA))
        state.require_same(identity.deciding(job.config, known), job.folder)


def estimated_seconds(job: Job, jobs: Sequence[Job]) -> float | None:
    """How long a job will take, from its finished neighbours: those of its row, else all."""
    if job.state == DONE:
        return 0.0
    row = [each.seconds for each in jobs if each.row == job.row]
    known = [each for each in row if each is not None]
    known = known or [each.seconds for each in jobs if each.seconds is not None]
    return sum(known) / len(known) if known else None
