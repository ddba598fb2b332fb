"""What a sweep will do, before it does anything: its jobs, who they are and how far they came.

Every job is composed, typed and checked by the rules across groups, so that an error in job 37 is
told before job 0 starts. Nothing heavy is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from flair2_exp.config import identity, schema
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.run import assembly
from flair2_exp.run import record as run_state
from flair2_exp.run.experiment import is_done
from flair2_exp.run.record import RunState
from flair2_exp.run.results import read_metrics
from flair2_exp.tracking.params import flatten, render

NEW, DONE, RESUME, FAILED = "new", "done", "resume", "failed"

UNKNOWN_DATA: Final = ""
"""Stands for the data's fingerprint, which only a run reads."""


@dataclass
class Job:
    """One job of a sweep, and how far it was when its folder was last read (`refresh`).

    Attributes:
        number: Its place in the sweep, from 0.
        overrides: What sets it apart, as Hydra takes them.
        config: Its checked config.
        root: The sweep's folder.
        folder: Where it runs.
        found: The state of the run in its folder; None where there is none.
        metrics: What it measured; empty where it is not done.
        done: Whether nothing is left to do: what was trained without a test may be tested later.
        stamp: Changes whenever the run writes its state: two starts that fail alike differ in it.
    """

    number: int
    overrides: tuple[str, ...]
    config: schema.Config
    root: Path
    folder: Path
    found: RunState | None = field(init=False, default=None)
    metrics: dict[str, float] = field(init=False, default_factory=dict)
    done: bool = field(init=False, default=False)
    stamp: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read the folder again."""
        self.found = RunState.read(self.folder)
        try:
            self.stamp = (self.folder / run_state.FILE).stat().st_mtime_ns
        except OSError:
            self.stamp = 0
        self.metrics = read_metrics(self.folder)
        self.done = self.found is not None and is_done(self.found, self.metrics, self.config)

    @property
    def row(self) -> str:
        """The row of the leaderboard that it belongs to."""
        return self.config.tracking.tags.get("flair2.row", self.config.name)

    @property
    def state(self) -> str:
        """`new`, `done`, `resume` or `failed`."""
        if self.found is None:
            return NEW
        if self.done:
            return DONE
        return FAILED if self.found.status == run_state.FAILED else RESUME

    @cached_property
    def config_hash(self) -> str:
        """The identity of its config alone, known before its data are read."""
        return identity.identity(self.config, UNKNOWN_DATA)

    @property
    def identity(self) -> str:
        """The run's identity, as its MLflow run has it; empty until it has read its data."""
        return self.found.identity if self.found else ""

    @property
    def seconds(self) -> float | None:
        """Training and inference time, where it is done."""
        if "train/seconds" not in self.metrics:
            return None
        return self.metrics["train/seconds"] + self.metrics.get("inference/seconds", 0.0)


def split(
    lines: Sequence[str], params: dict[str, Any], loader: ConfigLoader | None = None
) -> list[tuple[str, ...]]:
    """The jobs that Hydra's basic sweeper makes of a command's overrides, in its order.

    Args:
        lines: The overrides of the command line; they win over `params`.
        params: `hydra.sweeper.params` of the config.
        loader: Knows the options of each group, for `model=glob(u*)`.

    Raises:
        ConfigError: Several sweeps at once: each has rows of its own, of which none would be run.
            Or no job, since an option is swept over nothing.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parser = OverridesParser.create(loader)
    own = [each for each in parser.parse_overrides(list(lines)) if not _is_hydras(each)]
    for each in own:
        if each.get_key_element() == "sweep" and each.is_sweep_override():
            raise ConfigError(f"{each.input_line}: one sweep at a time; start a command for each.")
    merged = [f"{key}={value}" for key, value in params.items()]
    merged += [each.input_line or "" for each in own]
    swept = parser.parse_overrides(merged)
    for each in swept:
        if each.is_sweep_override() and not list(each.sweep_string_iterator()):
            raise ConfigError(f"{each.input_line}: this is no value, so there would be no job.")
    (batch,) = BasicSweeper.split_arguments(swept, max_batch_size=None)
    return [tuple(job) for job in batch]


def is_typed(key: str, lines: Sequence[str]) -> bool:
    """Whether an option stands on the command line, rather than in a config file alone."""
    parsed = OverridesParser.create().parse_overrides(list(lines))
    return any(each.get_key_element().lstrip("+~") == key for each in parsed)


def _is_hydras(override: Override) -> bool:
    return override.get_key_element().lstrip("+~").startswith("hydra")


def plan(jobs: Sequence[Sequence[str]], sweep: DictConfig) -> list[Job]:
    """Compose and check every job, and find out where each stands. Hydra must be initialised.

    Args:
        jobs: The overrides of each.
        sweep: `hydra.sweep`: `dir`, and `subdir` as it is written, uninterpolated.

    Returns:
        The jobs, one that is asked for twice once.

    Raises:
        ConfigError: A job that cannot run, two different jobs with one folder, a job in the sweep's
            own folder, or a folder with a run of another experiment in it.
        HydraException: A job that does not compose.
    """
    planned: dict[Path, Job] = {}
    folder = Path(sweep.dir)
    # As the command has it: a job's own config does not hold the command's `hydra.` overrides.
    subdir = OmegaConf.to_container(sweep, resolve=False).get("subdir")  # type: ignore[union-attr]
    asked = dict.fromkeys(tuple(job) for job in jobs)
    composed = [_job(number, job, folder, subdir) for number, job in enumerate(asked)]
    for number, job in enumerate(_named_apart(composed, subdir)):
        if job.folder == folder:  # which the sweep holds for itself
            raise ConfigError(
                f"hydra.sweep.subdir={subdir} gives job {number} ({' '.join(job.overrides)}) the "
                "folder of the whole sweep.\nName a folder of its own, as seed=${seed}."
            )
        twin = planned.get(job.folder)
        if twin is None:
            planned[job.folder] = job
        elif twin.config_hash != job.config_hash:
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
    words = {key: _words(key, {line[key] for line in lines}) for key in apart}
    renamed = []
    for job, line in zip(jobs, lines, strict=True):
        name = "_".join(words[key][line[key]] for key in apart)
        overrides = (*job.overrides, f"name='{name}'")
        renamed.append(_job(job.number, overrides, job.root, subdir))
    return renamed


def _words(key: str, values: set[str]) -> dict[str, str]:
    """What to call each value of an option: without slashes, since the name is one folder's.

    A group's option says enough; a bare value needs its name: `lr=0.001`.
    """
    last = {value: value.rpartition("/")[2] for value in values}
    if len(set(last.values())) < len(values):
        last = {value: value.replace("/", "_") for value in values}
    name = f"{key.rpartition('.')[2]}=" if "." in key else ""
    return {value: name + word.replace("'", "") for value, word in last.items()}


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
    if job.found is not None:
        known = str(job.found.deciding.get("fingerprint", UNKNOWN_DATA))
        job.found.require_same(identity.deciding(job.config, known), job.folder)


def distributes(launcher: DictConfig) -> bool:
    """Whether a launcher (`hydra.launcher`) takes jobs to other machines: other devices and disks.

    It then starts the processes of a distributed training itself, too.
    """
    return "submitit" in str(launcher._target_)


def require_files(jobs: Sequence[Job]) -> None:
    """Refuse data and weights that are not there, before the first job starts.

    Not for a launcher that takes jobs to other machines, which have other disks.

    Raises:
        ConfigError: A job that is not done names some.
    """
    for job in jobs:
        if job.state == DONE:
            continue
        try:
            assembly.require_files(job.config)
        except FlairError as error:
            name = f"job {job.number} ({' '.join(job.overrides)})"
            raise ConfigError(f"{name}: {error}") from error


def estimates(jobs: Sequence[Job]) -> list[float | None]:
    """How long each job will take, from its finished neighbours: those of its row, else all."""
    known: dict[str, list[float]] = {}
    for job in jobs:
        if job.seconds is not None:
            known.setdefault(job.row, []).append(job.seconds)
    means = {row: sum(each) / len(each) for row, each in known.items()}
    every = [seconds for each in known.values() for seconds in each]
    mean = sum(every) / len(every) if every else None
    return [0.0 if job.state == DONE else means.get(job.row, mean) for job in jobs]


def choose_baseline(
    jobs: Sequence[Job], baseline: str | None, *, typed: bool
) -> tuple[str | None, str]:
    """The row that others are compared with, checked before anything is trained.

    A sweep's file names its baseline for the whole sweep; who asks for a part of its rows need not
    know it. Who types a baseline means it.

    Args:
        jobs: The sweep's.
        baseline: `sweep.baseline`.
        typed: Whether it stands on the command line.

    Returns:
        The baseline, and a note where it is not the one that the sweep's file names.

    Raises:
        ConfigError: A typed one that is none of the rows.
    """
    rows = list(dict.fromkeys(job.row for job in jobs))
    if baseline is None or baseline in rows:
        return baseline, ""
    if typed:
        raise ConfigError(
            f"sweep.baseline={baseline} is no row of this sweep.\nIts rows: {', '.join(rows)}."
        )
    return rows[0], f"{baseline}, the sweep's baseline, is not among its rows here: {rows[0]} is."


def choose_factors(
    jobs: Sequence[Job], factors: list[str] | None, *, typed: bool
) -> tuple[list[str] | None, str]:
    """The factors whose effects the report estimates, checked as the baseline is.

    Args:
        jobs: The sweep's.
        factors: `sweep.factors`.
        typed: Whether they stand on the command line.

    Returns:
        Those that take two values over the jobs (None: no factorial), and a note on the others.

    Raises:
        ConfigError: A typed one that does not take two values.
    """
    if not factors:
        return factors, ""
    configs = [flatten(dataclasses.asdict(job.config)) for job in jobs]
    values = {
        key: list(dict.fromkeys(render(each[key]) for each in configs if key in each))
        for key in factors
    }
    others = [key for key in factors if len(values[key]) != 2]
    if typed and others:
        told = ", ".join(values[others[0]]) or "none: there is no such option"
        raise ConfigError(
            f"sweep.factors: {others[0]} must take two values over the jobs, not {told}.\n"
            "Sweep it over two values, or leave it out of sweep.factors."
        )
    note = f"Factors left out, since they do not take two values here: {', '.join(others)}."
    return [key for key in factors if key not in others] or None, note if others else ""


def same_experiments(jobs: Sequence[Job]) -> str:
    """A note on rows that differ in nothing that decides their result; empty where there are none.

    Such as those of the satellite's preprocessing with a model that does not read the series. They
    are trained as asked for: what they cost is for whoever asks to judge.
    """
    alike: dict[str, list[str]] = {}
    for job in jobs:
        alike.setdefault(job.config_hash, []).append(job.row)
    groups = dict.fromkeys(", ".join(rows) for rows in alike.values() if len(rows) > 1)
    return "\n".join(
        f"One experiment under several names, since nothing that sets them apart decides the "
        f"result: {rows}."
        for rows in groups
    )
