"""Which runs make one row, what tells rows of one name apart, and which may be compared at all.

Light: a sweep's plan names its jobs by `tell_apart` before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from flair2_exp.config.identity import decides
from flair2_exp.errors import ConfigError
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.report.runs import ScoredRun

TELLING: Final[tuple[str, ...]] = (
    "model.name", "quirk", "s2_preproc.name", "aug.name", "metadata.name", "loss.name",
)  # fmt: skip
"""Options that name a row best, where several tell rows apart equally well."""


def tell_apart(
    options: Sequence[Mapping[str, str]], seeds: Sequence[object]
) -> list[dict[str, str]]:
    """Return what tells runs of one name from each other: as few options as needed.

    Args:
        options: For each run its options as text, by name. Of several that tell the runs apart
            equally well the first is taken; an option that a run lacks counts as `null`.
        seeds: For each run its seed: runs that differ in the seed alone are one row.

    Returns:
        For each run the options, with their values, that set it apart from the others; empty where
        no seed is there twice. Runs of one seed with equal options get equal answers.
    """
    values = {
        name: [run.get(name, "null") for run in options]
        for name in dict.fromkeys(name for run in options for name in run)
    }
    best = max(values, key=lambda name: len(set(values[name])), default="")
    if len(set(seeds)) == len(seeds) or not best or len(set(values[best])) == 1:
        return [{} for _ in options]
    apart = [{best: value} for value in values[best]]
    for value in set(values[best]):
        same = [at for at, each in enumerate(values[best]) if each == value]
        further = tell_apart([options[at] for at in same], [seeds[at] for at in same])
        for at, more in zip(same, further, strict=True):
            apart[at] |= more
    return apart


def name_rows(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Return the runs with `apart` set where rows of one name have different configs.

    A plain multirun (`--multirun model=unet,utt`) calls all its runs by one name; its rows become
    `experiment (model.name=unet)` and `experiment (model.name=utt)`.

    Raises:
        ConfigError: Two runs of one row and seed have the same config.
    """
    named = list(runs)
    for row in dict.fromkeys(run.row for run in runs):
        places = [at for at, run in enumerate(runs) if run.row == row]
        options = [_naming(runs[at].settings) for at in places]
        apart = tell_apart(options, [runs[at].seed for at in places])
        for at, values in zip(places, apart, strict=True):
            label = ", ".join(f"{name}={value}" for name, value in values.items())
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


def _naming(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the options that may name a row, those that name it best first."""
    deciding = {name: settings[name] for name in settings if decides(name) and name != "seed"}
    return {name: settings.get(name, "null") for name in TELLING} | deciding


def require_comparable(runs: Sequence[ScoredRun]) -> None:
    """Refuse to compare runs of different data sets, splits, metric settings or test patches.

    A value that was not recorded (empty) agrees with every other; the test set's hash is always
    there. A fingerprint is of the files that a run reads, so only those of runs that read the same
    inputs are compared.

    Raises:
        ConfigError: They differ; the message says in what and names a run of each kind.
    """
    kinds: dict[str, Callable[[ScoredRun], str]] = {
        "data sets": lambda run: run.tag(Tag.DATASET),
        "splits": lambda run: run.tag(Tag.SPLIT),
        "metric settings": lambda run: run.tag(Tag.METRIC),
        "classes": lambda run: ", ".join(run.counts.classes),
        "test patches or labels": lambda run: run.counts.test_set,
    }
    for kind, value_of in kinds.items():
        _require_one(runs, kind, value_of)
    for inputs in dict.fromkeys(run.tag(Tag.READS) for run in runs):
        alike = [run for run in runs if run.tag(Tag.READS) == inputs]
        _require_one(
            alike, "contents of the data set (fingerprints)", lambda run: run.record.fingerprint
        )


def _require_one(
    runs: Sequence[ScoredRun], kind: str, value_of: Callable[[ScoredRun], str]
) -> None:
    values: dict[str, ScoredRun] = {}
    for run in runs:
        if value := value_of(run):
            values.setdefault(value, run)
    if len(values) > 1:
        examples = "; ".join(f"{value}: {run.row}, {run.source}" for value, run in values.items())
        raise ConfigError(
            f"runs of different {kind} cannot be compared ({examples}).\nReport them separately."
        )
