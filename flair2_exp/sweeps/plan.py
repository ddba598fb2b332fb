"""What a sweep will do, before it does anything: its jobs, who they are and how far they came.

Every job is composed, typed and checked by all rules, so that an error in job 37 is known before
job 0 starts. Nothing heavy is imported; the rules that need torch follow in `require_feasible`.
"""

from __future__ import annotations

import functools
import itertools
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from flair2_exp.compat import split_sweep
from flair2_exp.config.compose import as_hydra_runs, folder_of, typed
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import plain, require_usable
from flair2_exp.config.identity import UNKNOWN_DATA, deciding
from flair2_exp.engines.launcher import engine_of
from flair2_exp.errors import ConfigError, DataError, FlairError
from flair2_exp.lifecycle import assembly
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FAILED as RUN_FAILED
from flair2_exp.lifecycle.record import RunRecord, place_of, row_of
from flair2_exp.machine import processes_at_most
from flair2_exp.report.rows import one_experiment, tell_apart
from flair2_exp.values import digest, flatten, render

NEW, DONE, RESUME, FAILED = "new", "done", "resume", "failed"

MOST_JOBS: Final = 10_000
"""Of a sweep. FLAIR #2's largest ablations have some hundred; each job is composed beforehand."""

_OF_THE_WHOLE: Final = ("sweep", "paths", "tune", "hydra")
"""Nodes whose options hold for a whole sweep and cannot be swept over."""


@dataclass
class Job:
    """One job of a sweep, and how far it was when its folder was last read (`refresh`).

    Attributes:
        number: Its place in the sweep, from 0.
        overrides: What sets it apart, as Hydra takes them.
        config: Its checked config.
        root: The sweep's folder.
        folder: Where it runs.
        fingerprint: Of the data that it names; empty where they cannot be seen from here, or are
            not made yet.
        live: `queued`, `running` or `cancelled`, as the engine has it that has started it; else "".
        engine: The name of that engine; else "".
        record: The run in its folder; None where there is none.
        stamp: Changes whenever the run writes its record: two starts that fail alike differ in it.
    """

    number: int
    overrides: tuple[str, ...]
    config: Config
    root: Path
    folder: RunFolder
    fingerprint: str = UNKNOWN_DATA
    live: str = field(init=False, default="")
    engine: str = field(init=False, default="")
    record: RunRecord | None = field(init=False, default=None)
    stamp: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.refresh()

    def __str__(self) -> str:
        return _shown(self.number, self.overrides)

    def refresh(self) -> None:
        """Read the folder again."""
        self.record = RunRecord.read(self.folder)
        try:
            self.stamp = self.folder.record.stat().st_mtime_ns
        except OSError:
            self.stamp = 0

    @property
    def row(self) -> str:
        """The row of the leaderboard that it belongs to."""
        return row_of(self.config)

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.config.seed

    @property
    def state(self) -> str:
        """`new`, `done`, `resume` or `failed`."""
        if self.record is None:
            return NEW
        if self.record.is_done(test=self.config.test):
            return DONE
        return FAILED if self.record.status == RUN_FAILED else RESUME

    @cached_property
    def experiment(self) -> str:
        """A hash of all that decides its result, known before the run: its data by their place."""
        return digest(self._deciding)

    @cached_property
    def whatever_seed(self) -> str:
        """As `experiment`, equal for jobs that differ in the seed alone: they make one row."""
        return digest({**self._deciding, "seed": None})

    @cached_property
    def _deciding(self) -> dict[str, Any]:
        place = {} if self.fingerprint else place_of(self.config)
        return deciding(self.config, self.fingerprint) | place

    @property
    def identity(self) -> str:
        """The run's identity, as its MLflow run has it; empty until it has read its data."""
        return self.record.identity if self.record else ""

    @property
    def seconds(self) -> float | None:
        """Training and inference time, where it is done."""
        scores = self.record.scores if self.record else {}
        if "train/seconds" not in scores:
            return None
        return scores["train/seconds"] + scores.get("inference/seconds", 0.0)

    def require_same(self) -> None:
        """Refuse to mix results: whatever the folder holds must be this experiment on these data.

        Raises:
            ConfigError: It is another one; the message says in what.
        """
        if self.record is not None:
            self.record.require_same(self.config, self.fingerprint, self.folder)


def _shown(number: int, overrides: Sequence[str]) -> str:
    return f"job {number} ({' '.join(overrides)})".replace("\n", r"\n")


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep, and what was done to them that their command does not say."""

    jobs: list[Job]
    notes: list[str]


def split(
    lines: Sequence[str], params: dict[str, Any], loader: ConfigLoader | None = None
) -> list[tuple[str, ...]]:
    """Return the jobs that Hydra's basic sweeper makes of a command's overrides, in its order.

    Args:
        lines: The overrides of the command line; they win over `params`.
        params: `hydra.sweeper.params` of the config.
        loader: Knows the options of each group, for `model=glob(u*)`.

    Raises:
        ConfigError: Several sweeps at once: each has rows of its own, of which none would be run.
            An option of the whole sweep is swept over. Or there is no job, since an option is swept
            over nothing.
    """
    parser = OverridesParser.create(loader)
    own = [each for each in parser.parse_overrides(list(lines)) if not each.is_hydra_override()]
    for each in own:
        key = _key(each)
        if each.is_sweep_override() and key.split(".")[0] in _OF_THE_WHOLE:
            raise ConfigError(
                f"{each.input_line}: {key} holds for a whole sweep: start a command for each value."
            )
    merged = [f"{key}={value}" for key, value in params.items()]
    merged += [each.input_line or "" for each in own]
    swept = parser.parse_overrides(merged)
    jobs = 1
    for each in swept:
        if each.is_sweep_override():
            jobs *= sum(1 for _ in itertools.islice(each.sweep_string_iterator(), MOST_JOBS + 1))
        if not jobs:
            raise ConfigError(f"{each.input_line}: this gives no value, so there would be no job.")
        if jobs > MOST_JOBS:
            raise ConfigError(f"{each.input_line}: more than {MOST_JOBS} jobs in one sweep.")
    return split_sweep(swept)


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def is_typed(key: str, lines: Sequence[str]) -> bool:
    """Return whether an option stands on the command line, rather than in a config file alone."""
    parsed = OverridesParser.create().parse_overrides(list(lines))
    return any(_key(each) == key for each in parsed)


class Planner:
    """Composes and checks the jobs of a sweep, as its launcher will compose them."""

    def __init__(self, master: DictConfig, loader: ConfigLoader) -> None:
        self._master = master
        self._loader = loader
        self._folder = Path(master.hydra.sweep.dir).absolute()
        self._fingerprints: dict[str, str] = {}

    def plan(self, jobs: Sequence[tuple[str, ...]]) -> Plan:
        """Compose and check every job, and find out where each stands.

        Returns:
            The jobs; one that is named twice once, with a note.

        Raises:
            ConfigError: A job that cannot run, two different jobs with one folder, a job in the
                sweep's own folder, or a folder with a run of another experiment or of other data.
            HydraException: A job that does not compose.
        """
        times = Counter(jobs)
        composed = [self._job(number, job) for number, job in enumerate(times)]
        named, notes = self._named_apart(composed)
        repeated = [" ".join(job) for job, count in times.items() if count > 1]
        if repeated:
            notes.append(f"Named more than once and trained once: {'; '.join(repeated)}.")
        planned: dict[Path, Job] = {}
        for job in named:
            twin = planned.setdefault(job.folder.path, job)
            if twin is job:
                continue
            if twin.experiment != job.experiment:
                raise ConfigError(
                    f"{twin} and {job} would share the folder {job.folder}.\n"
                    "Put what sets them apart into hydra.sweep.subdir."
                )
            notes.append(f"{job} is {twin} once more: it is trained once.")
        for job in planned.values():
            job.require_same()
        notes += same_experiments(planned.values())
        return Plan(list(planned.values()), notes)

    def _job(self, number: int, overrides: tuple[str, ...]) -> Job:
        config = self._loader.load_sweep_config(self._master, list(overrides))
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.job.id = str(number)
        name = _shown(number, overrides)
        root = Path(folder_of(config, "sweep.dir")).absolute()
        subfolder = folder_of(config, "sweep.subdir")
        if root != self._folder:
            raise ConfigError(
                f"{name} would run in {root}, outside of its sweep's folder {self._folder}: "
                "hydra.sweep.dir, sweep.name and paths.root hold for a whole sweep."
            )
        folder = RunFolder(self._folder / subfolder)
        if folder.path == self._folder:  # which the sweep holds for itself
            raise ConfigError(
                f"hydra.sweep.subdir={subfolder} gives {name} the folder of the whole sweep.\n"
                "Name a folder of its own, as seed=${seed}."
            )
        try:
            with as_hydra_runs(config, str(folder)):
                job = typed(config)
            require_usable("hydra.sweep.subdir", str(folder))
            return Job(number, overrides, job, self._folder, folder, self._data(job))
        except FlairError as error:
            raise ConfigError(f"{name}: {error}") from error

    def _data(self, config: Config) -> str:
        """Return the fingerprint of a job's data, read once for jobs of the same data."""
        key = digest(plain([config.dataset, config.split, sorted(config.reads)]))
        if key not in self._fingerprints:
            self._fingerprints[key] = self._read_fingerprint(config)
        return self._fingerprints[key]

    @staticmethod
    def _read_fingerprint(config: Config) -> str:
        try:
            return assembly.data_fingerprint(config)
        except DataError:  # jobs that need the data are refused by `require_files`
            return UNKNOWN_DATA

    def _named_apart(self, jobs: Sequence[Job]) -> tuple[list[Job], list[str]]:
        """Return the jobs, renamed by what they sweep where several rows would have one name."""
        lines = [dict(_key_and_value(line) for line in job.overrides) for job in jobs]
        seeds_apart = len({(job.row, job.seed) for job in jobs}) == len(jobs)
        experiments = {(job.row, job.whatever_seed) for job in jobs}
        if seeds_apart and len(experiments) == len({job.row for job in jobs}):
            return list(jobs), []
        options = [{key: line[key] for key in line if key != "seed"} for line in lines]
        apart = tell_apart(options)
        keys = [key for key in options[0] if any(key in each for each in apart)]
        if not keys:
            return list(jobs), []
        words = {key: _words(key, {line[key] for line in lines}) for key in keys}
        renamed = []
        for job, line in zip(jobs, lines, strict=True):
            name = "_".join(words[key][line[key]] for key in keys)
            renamed.append(self._job(job.number, (*job.overrides, f"name='{name}'")))
        return renamed, [f"The rows are named by what sets them apart: {', '.join(keys)}."]


def _words(key: str, values: set[str]) -> dict[str, str]:
    """Return what to call each value of an option: without slashes, as the name of a folder.

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


def same_experiments(jobs: Iterable[Job]) -> list[str]:
    """Return notes on rows that differ in nothing that decides their result.

    Such as those of the satellite's preprocessing with a network that does not read the series.
    They are trained as requested: whether that is worth its cost is the user's decision.
    """
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(job.experiment, []).append(job)
    groups = dict.fromkeys(_names(twins) for twins in alike.values() if len(twins) > 1)
    return [one_experiment(rows) for rows in groups]


def _names(jobs: Sequence[Job]) -> str:
    """Return the rows of some jobs; of a single row its seeds, without which nothing is drawn."""
    rows = list(dict.fromkeys(job.row for job in jobs))
    return ", ".join(rows if len(rows) > 1 else (f"{job.row} seed={job.seed}" for job in jobs))


def distributes(launcher: DictConfig) -> bool:
    """Return whether a launcher (`hydra.launcher`) takes jobs to other machines and disks.

    It then starts the processes of a distributed training itself, too.
    """
    engine = engine_of(launcher)
    if engine == "ray":
        return launcher.get("address") is not None  # else a cluster of this machine alone
    return engine == "slurm" or "submitit" in str(launcher._target_)


def require_launcher(launcher: DictConfig) -> None:
    """Refuse a launcher that would refuse every job, when the sweep has begun.

    Raises:
        ConfigError: It lacks what it submits with, its options do not make one, or it would start
            many times the processes that the processor has cores.
    """
    target = str(launcher._target_)
    if "submitit" in target and "SlurmLauncher" in target and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=submitit_slurm: this machine has no srun: start the command where "
            "SLURM is, or use hydra/launcher=submitit_local."
        )
    jobs, most = launcher.get("n_jobs"), processes_at_most()
    if isinstance(jobs, int) and (jobs == 0 or jobs > most):
        raise ConfigError(
            f"hydra.launcher.n_jobs={jobs}: expected 1 to {most}, or -1 for one per core."
        )
    if "JoblibLauncher" in target:
        import joblib

        names = ("n_jobs", "prefer", "require", "batch_size", "pre_dispatch")
        options = {name: launcher[name] for name in names}
        size, ahead = str(options["batch_size"]), str(options.pop("pre_dispatch"))
        options["batch_size"] = int(size) if size.isdecimal() else size
        try:
            joblib.effective_n_jobs(options["n_jobs"])
            joblib.Parallel(**options)
            if not re.fullmatch(r"all|[\d*/+() -]*(n_jobs)?[\d*/+() -]*", ahead):
                raise ValueError(f"pre_dispatch={ahead}: expected all, a number, or N*n_jobs")
        except (TypeError, ValueError) as error:
            shown = " ".join(f"{name}={value}" for name, value in options.items())
            raise ConfigError(f"hydra.launcher (joblib), {shown}: {error}.") from error


def require_files(jobs: Sequence[Job]) -> None:
    """Refuse data and weights that are not there, before the first job starts.

    Not for a launcher that takes jobs to other machines, which have other disks.

    Raises:
        ConfigError: A job that is not done names some.
    """
    for job in jobs:
        if job.state != DONE:
            _checked(job, assembly.require_files)


def _checked(job: Job, check: Callable[[Config], object]) -> None:
    try:
        check(job.config)
    except FlairError as error:
        raise ConfigError(f"{job}: {error}") from error


UNCHECKED: Final = (
    "Not checked by a dry run, since torch would be loaded: that each encoder, optimizer and "
    "strategy exists and takes its options."
)


def require_feasible(jobs: Sequence[Job], *, remote: bool) -> None:
    """Run the rules that need torch, once for each distinct value, before the first job starts.

    Args:
        jobs: The sweep's.
        remote: Whether the jobs run on other machines: then their devices are not checked here.

    Raises:
        ConfigError: A job that is not done could not be built.
    """
    checked: set[str] = set()
    for job in jobs:
        groups = (job.config.model, job.config.utae, job.config.fusion, job.config.metadata)
        learning = (job.config.loss, job.config.optimizer, job.config.scheduler)
        data = (job.config.dataset, job.config.data.bands, job.config.data.classes)
        key = digest(plain([*groups, *learning, job.config.trainer, *data]))
        if job.state != DONE and key not in checked:
            checked.add(key)
            _checked(job, functools.partial(assembly.require_feasible, devices=not remote))


def estimates(jobs: Sequence[Job]) -> list[float | None]:
    """Return how long each job will take, from its finished neighbours: of its row, else all."""
    times: dict[str, list[float]] = {}
    for job in jobs:
        if job.seconds is not None:
            times.setdefault(job.row, []).append(job.seconds)
    means = {row: sum(each) / len(each) for row, each in times.items()}
    every = [seconds for each in times.values() for seconds in each]
    mean = sum(every) / len(every) if every else None
    return [0.0 if job.state == DONE else means.get(job.row, mean) for job in jobs]


def choose_baseline(
    jobs: Sequence[Job], baseline: str | None, *, typed: bool
) -> tuple[str | None, str]:
    """Return the row that others are compared with, checked before anything is trained.

    A sweep's file names its baseline for the whole sweep; who asks for a part of its rows need not
    know it. Who types a baseline means it.

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
            f"sweep.baseline={baseline} is not a row of this sweep.\nIts rows: {', '.join(rows)}."
        )
    return rows[0], f"{baseline}, the sweep's baseline, is not among its rows here: {rows[0]} is."


def choose_factors(
    jobs: Sequence[Job], factors: Sequence[str] | None, *, typed: bool
) -> tuple[list[str] | None, str]:
    """Return the factors whose effects the report estimates, checked as the baseline is.

    Returns:
        Those that take two values over the jobs (None: no factorial), and a note on the others.

    Raises:
        ConfigError: A typed one that does not take two values.
    """
    if not factors:
        return None, ""
    configs = [flatten(plain(job.config)) for job in jobs]
    values = {
        key: list(dict.fromkeys(render(each[key]) for each in configs if key in each))
        for key in factors
    }
    others = [key for key in factors if len(values[key]) != 2]
    if typed and others:
        shown = ", ".join(values[others[0]]) or "none: there is no such option"
        raise ConfigError(
            f"sweep.factors: {others[0]} must take two values over the jobs, not {shown}.\n"
            "Sweep it over two values, or omit it from sweep.factors."
        )
    note = f"Factors left out, since they do not take two values here: {', '.join(others)}."
    return [key for key in factors if key not in others] or None, note if others else ""
