"""Which runs make one row, what tells rows of one name apart, and which may be compared at all.

Light: a sweep's plan names its jobs by `tell_apart` before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.config.identity import decides
from flair2_exp.errors import ConfigError
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import digest, render

if TYPE_CHECKING:
    from flair2_exp.nomenclature import Nomenclature
    from flair2_exp.report.runs import AbsentRun, ScoredRun

TELLING: Final[tuple[str, ...]] = (
    "model.name", "s2_preproc.name", "aug.name", "metadata.name", "loss.name",
)  # fmt: skip
"""Options that name a row best, where options of their group differ."""

NOT_COMPARABLE: Final = "not comparable"
"""The state of a run that cannot be compared with the baseline's (`comparable`)."""

OUTSIDE: Final[tuple[str, ...]] = ("seed", "fingerprint")
"""Not what rows of one name are told apart by: seeds make the runs of a row, and runs of different
data are refused (`require_comparable`)."""


def tell_apart(options: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return what tells runs of one name from each other: as few options as needed.

    Args:
        options: For each run its options as text, by name. Of several that tell the runs apart
            equally well the first is taken; an option that a run lacks counts as `null`.

    Returns:
        For each run the options, with their values, that set it apart from the others. Runs with
        equal options get equal answers.
    """
    values = {
        name: [run.get(name, "null") for run in options]
        for name in dict.fromkeys(name for run in options for name in run)
    }
    best = max(values, key=lambda name: len(set(values[name])), default="")
    if not best or len(set(values[best])) == 1:
        return [{} for _ in options]
    apart = [{best: value} for value in values[best]]
    for value in dict.fromkeys(values[best]):
        same = [at for at, each in enumerate(values[best]) if each == value]
        for at, more in zip(same, tell_apart([options[at] for at in same]), strict=True):
            apart[at] |= more
    return apart


@dataclass(frozen=True)
class Namesakes:
    """Runs of one row name, and the experiments that they are.

    Attributes:
        runs: All finished runs of that name.
        deciding: For each run what decides its result, but for `OUTSIDE`.
    """

    runs: Sequence[ScoredRun]
    deciding: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, runs: Sequence[ScoredRun]) -> Namesakes:
        """Return runs with what decides their results: as recorded, else by their configs."""
        recorded = all(run.record.deciding for run in runs)
        deciding = [run.record.deciding if recorded else _by_config(run) for run in runs]
        return cls(runs, [{k: each[k] for k in each if k not in OUTSIDE} for each in deciding])

    @property
    def row(self) -> str:
        """The name that they share."""
        return self.runs[0].record.row

    @cached_property
    def experiments(self) -> list[str]:
        """A hash for each run, equal for runs of one experiment."""
        return [digest(each) for each in self.deciding]

    @cached_property
    def varied(self) -> dict[str, list[str]]:
        """Options that take several values, with these. One that a run does not use is no value."""
        names = dict.fromkeys(name for each in self.deciding for name in each)
        taken = {name: [each[name] for each in self.deciding if name in each] for name in names}
        return {
            name: list(dict.fromkeys(map(_text, values)))
            for name, values in taken.items()
            if len({digest({"": each}) for each in values}) > 1
        }

    def apart(self) -> list[dict[str, str]]:
        """Return for each run what tells its experiment from the others; empty if it is the one."""
        if len(set(self.experiments)) == 1:
            return [{} for _ in self.runs]
        first = [self.experiments.index(each) for each in dict.fromkeys(self.experiments)]
        told = tell_apart([self._naming(at) for at in first])
        by_experiment = {self.experiments[at]: each for at, each in zip(first, told, strict=True)}
        return [by_experiment[each] for each in self.experiments]

    def _naming(self, at: int) -> dict[str, str]:
        """Return the options that may name a run's row, those that name it best first."""
        telling = {name: self.runs[at].settings.get(name, "null") for name in self._telling}
        return telling | {name: _text(value) for name, value in self.deciding[at].items()}

    @cached_property
    def _telling(self) -> list[str]:
        """The `TELLING` that stand for something that decides, one value per experiment."""
        places = range(len(self.runs))
        return [
            name
            for name in TELLING
            if any(option.startswith(f"{name.partition('.')[0]}.") for option in self.varied)
            and len({(self.experiments[at], self.runs[at].settings.get(name)) for at in places})
            == len(set(self.experiments))
        ]


def _by_config(run: ScoredRun) -> dict[str, str]:
    """Return what may decide the result of a run whose record does not hold what does."""
    deciding = {name: value for name, value in run.settings.items() if decides(name)}
    return deciding | {"version": run.tag(Tag.VERSION)}


def _text(value: object) -> str:
    """Return a value as text; of a file's digest the start."""
    text = render(value)
    return text[:19] if text.startswith("sha256:") else text


def namesakes(runs: Sequence[ScoredRun]) -> list[Namesakes]:
    """Return the runs by the name of their row, as their records have it."""
    names = dict.fromkeys(run.record.row for run in runs)
    return [Namesakes.of([run for run in runs if run.record.row == name]) for name in names]


def name_rows(runs: Sequence[ScoredRun], *, strict: bool = False) -> list[ScoredRun]:
    """Return the runs with `apart` set where runs of one row are different experiments.

    A row is one experiment over seeds: what decides the result, the package's version included, is
    the same for all its runs. A plain multirun (`--multirun model=unet,utt`) calls all its runs by
    one name; its rows become `experiment (model.name=unet)` and `experiment (model.name=utt)`.

    Args:
        runs: Finished runs.
        strict: Refuse such rows instead.

    Raises:
        ConfigError: Two runs of one row and seed have the same config; or, if `strict`, runs of one
            row are different experiments.
    """
    named = list(runs)
    for group in namesakes(runs):
        apart = group.apart()
        if strict and any(apart):
            raise ConfigError(
                f"row {group.row} has runs of {len(set(group.experiments))} "
                f"experiments: {_listed(group.varied)}. Give them names of their own, or report "
                "without --strict, which makes each a row."
            )
        labels = [", ".join(f"{name}={each[name]}" for name in each) for each in apart]
        places = [at for at, run in enumerate(runs) if run.record.row == group.row]
        for at, label in zip(places, labels, strict=True):
            named[at] = dataclasses.replace(runs[at], apart=label)
    first: dict[tuple[str, int], ScoredRun] = {}
    for run in named:
        twin = first.setdefault((run.row, run.seed), run)
        if twin is not run:
            raise ConfigError(
                f"row {run.row} has two runs of seed {run.seed} and one config: {twin.source} and "
                f"{run.source}.\nA report takes one of each: leave one of the two out."
            )
    return named


def _listed(values: Mapping[str, Sequence[str]], limit: int = 4) -> str:
    """Return options with their values: `optimizer.lr (0.001; 0.3), …, and 2 more`."""
    parts = [f"{name} ({'; '.join(each)})" for name, each in values.items()]
    more = [f"and {len(parts) - limit} more"] if len(parts) > limit else []
    return ", ".join([*parts[:limit], *more])


def split_rows(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Say of rows of one name in what they differ beside what their names say.

    Args:
        runs: With `apart` set, as `name_rows` returns them.
    """
    for group in namesakes(runs):
        if len(rows := dict.fromkeys(run.row for run in group.runs)) == 1:
            continue
        names = " ".join(rows)
        shown = {name for name in TELLING if f"{name}=" in names}
        groups = tuple(f"{name.partition('.')[0]}." for name in shown)
        left = {
            name: values
            for name, values in group.varied.items()
            if f"{name}=" not in names and not name.startswith(groups or " ")
        }
        also = f"; they also differ in {_listed(left)}" if left else ""
        yield (
            f"Runs named {group.row} are {len(rows)} experiments, each a row of its "
            f"own, named by what sets it apart{also}."
        )


def same_rows(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Say of rows of different names that nothing that decides the result sets them apart."""
    alike: dict[str, dict[str, None]] = {}
    for run in runs:
        if run.record.deciding:
            (experiment,) = Namesakes.of([run]).experiments
            alike.setdefault(experiment, {})[run.row] = None
    for rows in alike.values():
        if len(rows) > 1:
            yield one_experiment(", ".join(rows))


def rows_of_other_code(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Say of a user's packages that rows were trained with different states of them."""
    states: dict[str, dict[str, dict[str, None]]] = {}
    for run in runs:
        for name, value in run.record.deciding.items():
            if name.startswith("code."):
                states.setdefault(name.removeprefix("code."), {}).setdefault(value, {})[run.row] = (
                    None
                )
    for package, rows in states.items():
        if len(rows) > 1:
            listed = "; ".join(
                f"{', '.join(each)} ({_text(state)})" for state, each in rows.items()
            )
            yield f"Rows were trained with different code of {package}: {listed}."


def one_experiment(names: str) -> str:
    """Return what to say of rows that differ in nothing that decides their result."""
    return (
        "One experiment under several names, since nothing that sets them apart decides the "
        f"result: {names}."
    )


_INCIDENTAL: Final[Mapping[str, Callable[[ScoredRun], str]]] = {
    "commit": lambda run: run.tag(Tag.COMMIT)[:10],
    "uncommitted changes": lambda run: run.tag(Tag.DIRTY),
    "machine": lambda run: run.tag(Tag.MACHINE),
    **{
        name: lambda run, name=name: run.settings.get(name, "")  # type: ignore[misc]
        for name in (
            "trainer.accelerator", "trainer.strategy", "trainer.threads",
            "model.compile", "model.channels_last", "utae.checkpointing",
        )
    },
}  # fmt: skip
"""What is recorded of runs, does not decide their results, and may yet change the last digits."""


def incidental(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Say in what the runs differ that need not matter: packages, commit, machine.

    The number of devices does where training is divided among them; it is said by itself.
    """
    yield from _devices(runs)
    values = {name: [value(run) for run in runs] for name, value in _INCIDENTAL.items()}
    packages = [dict(_packages(run)) for run in runs]
    for name in dict.fromkeys(name for each in packages for name in each):
        values[f"{name} version"] = [each.get(name, "") for each in packages]
    differing = {}
    for name, each in values.items():
        counts = Counter(filter(None, each))  # empty: not recorded
        if len(counts) > 1:
            words = [f"{value}: {n} run{'s' * (n > 1)}" for value, n in counts.most_common(4)]
            differing[name] = [*words, *([f"{len(counts) - 4} more"] if len(counts) > 4 else [])]
    if differing:
        yield f"Runs differ in {_listed(differing, 8)}: that need not matter, but may."
    changed = sum(bool(run.tag(Tag.CODE_CHANGED)) for run in runs)
    if changed:
        yield (
            f"The code changed after {changed} of {len(runs)} runs were submitted and before they "
            "began: they ran as the code was then."
        )


def _devices(runs: Sequence[ScoredRun]) -> Iterator[str]:
    """Say that runs were divided among different numbers of devices."""
    names = ("trainer.devices", "trainer.num_nodes")
    each = [[run.settings.get(name, "") for name in names] for run in runs]
    counts = Counter(
        "all" if devices == "-1" else str(int(devices) * int(nodes or 1))
        for devices, nodes in each
        if devices
    )
    if len(counts) > 1:
        words = [f"{number}: {n} run{'s' * (n > 1)}" for number, n in sorted(counts.items())]
        yield (
            f"Runs differ in their number of devices ({'; '.join(words)}). Batch sizes are per "
            "device, and without trainer.sync_batchnorm each device normalises its own batch: "
            "such trainings differ by more than their seeds."
        )


def _packages(run: ScoredRun) -> Iterator[tuple[str, str]]:
    for line in filter(None, run.tag(Tag.PACKAGES).split("; ")):
        name, _, version = line.partition("==")
        yield name, version


def comparable(
    runs: Sequence[ScoredRun], baseline: str | None = None
) -> tuple[list[ScoredRun], list[AbsentRun]]:
    """Return the runs that can be compared with the baseline's, and the others with why not.

    Args:
        runs: Finished runs.
        baseline: Its row, as the runs' records have it; None, or a row that is not there: the
            first.
    """
    from flair2_exp.report.runs import AbsentRun

    if conflict(runs) is None:
        return [*runs], []
    name = (baseline or "").partition(" (")[0]  # without what tells it from others of its name
    start = next((run for run in runs if run.record.row == name), runs[0])
    kept, others = [start], []
    for run in runs:
        if run is start:
            continue
        differs = conflict([*kept, run])
        if differs is None:
            kept.append(run)
            continue
        kind, values = differs
        theirs, *_, own = values
        reason = f"other {kind}: {own}, where {start.record.row} has {theirs}"
        others.append(AbsentRun(run.record.row, run.seed, NOT_COMPARABLE, reason))
    return [run for run in runs if any(run is each for each in kept)], others


def require_comparable(runs: Sequence[ScoredRun]) -> None:
    """Refuse to compare runs of different data sets, splits, metric settings or test patches.

    Raises:
        ConfigError: They differ (`conflict`); the message says in what and names a run of each
            kind.
    """
    if (differs := conflict(runs)) is not None:
        kind, values = differs
        examples = "; ".join(f"{value}: {run.row}, {run.source}" for value, run in values.items())
        raise ConfigError(
            f"runs of different {kind} cannot be compared ({examples}).\nReport them separately."
        )


def conflict(runs: Sequence[ScoredRun]) -> tuple[str, Mapping[str, ScoredRun]] | None:
    """Return in what runs differ that cannot be compared, and the first run of each value.

    None where they can be: where data sets, splits, metric settings and test patches are the same.

    A value that was not recorded (empty) agrees with every other; the test set's hash is always
    there. A fingerprint is of the files that a run reads, so only those of runs that read the same
    inputs are compared. Runs whose options of `split` choose other training patches are compared by
    the fingerprint of their test part.
    """
    kinds: dict[str, Callable[[ScoredRun], str]] = {
        "data sets": lambda run: run.tag(Tag.DATASET),
        "splits": lambda run: run.tag(Tag.SPLIT),
        "metric settings": lambda run: run.tag(Tag.METRIC),
        "classes": lambda run: _classes(run.counts.nomenclature),
        "test patches or labels": lambda run: run.counts.test_set,
    }
    checks = [(kind, value_of, runs) for kind, value_of in kinds.items()]
    for inputs in dict.fromkeys(run.tag(Tag.READS) for run in runs):
        alike = [run for run in runs if run.tag(Tag.READS) == inputs]
        test = "contents of the test part (fingerprints)"
        checks.append((test, lambda run: run.tag(Tag.TEST_FINGERPRINT), alike))
        for options in dict.fromkeys(map(_split_options, alike)):
            same = [run for run in alike if _split_options(run) == options]
            whole = "contents of the data set (fingerprints)"
            checks.append((whole, lambda run: run.record.fingerprint, same))
    for kind, value_of, compared in checks:
        values: dict[str, ScoredRun] = {}
        for run in compared:
            if value := value_of(run):
                values.setdefault(value, run)
        if len(values) > 1:
            return kind, values
    return None


def _split_options(run: ScoredRun) -> tuple[tuple[str, str], ...]:
    """Return the options that choose a run's patches, where they are recorded."""
    return tuple(sorted(each for each in run.settings.items() if each[0].startswith("split.")))


def _classes(nomenclature: Nomenclature) -> str:
    """Return the names of the classes, those that are not scored in brackets."""
    names, scored = nomenclature.names, nomenclature.scored
    return ", ".join([*names[:scored], *(f"({name})" for name in names[scored:])])
