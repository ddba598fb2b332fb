"""Tables of runs: read below folders or from an MLflow store, filtered, sorted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import options
from flair2_exp.errors import ConfigError, FlairError, UsageError, nearest
from flair2_exp.lifecycle.folder import RunFolder, run_folders
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.results.finding import multirun, results_folders
from flair2_exp.results.run import DAMAGED, RecordedRun, state_of
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import render

ELSEWHERE: Final = "elsewhere"
"""The state of a run that an MLflow store knows, and whose folder is not on this machine."""


@dataclass(frozen=True)
class Entry:
    """A run in a table; one without a readable record or config is there with its reason.

    Attributes:
        run: The run; its record is empty where none can be read.
        state: `done`, `running`, `failed`, `stopped`, `damaged` or `elsewhere`.
        note: Who is at work in it, or why it ended.
        params: What an MLflow store knows of the config; None where the folder is here.
    """

    run: RecordedRun
    state: str
    note: str = ""
    params: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, folder: RunFolder) -> Entry:
        """Read what a folder says of its run."""
        record, reason = None, ""
        try:
            record = RunRecord.read(folder)
        except FlairError as error:
            reason = str(error).splitlines()[0]
        state, note = state_of(folder, record)
        return cls(RecordedRun(folder, record or RunRecord({})), state, reason or note)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The config by dotted name, as far as it is known."""
        if self.params is not None:
            return self.params
        try:
            return self.run.settings
        except FlairError:
            return {}

    def value(self, name: str) -> Any:
        """Return a column's value, a score, an option, or the choice of a group; None: unknown."""
        if name in COLUMNS:
            return COLUMNS[name](self)
        if name in self.run.record.scores:
            return self.run.record.scores[name]
        return self.settings.get(name, self.settings.get(f"{name}.name"))

    def tag(self, name: Tag) -> str | None:
        """Return what the run's record says by a tag; None where it does not."""
        return self.run.record.tags.get(name) or None

    def score(self, name: str) -> float | None:
        """Return a number that the run measured; None where it did not."""
        record = self.run.record
        return record.scores.get(name, record.training.get(name))

    def epochs(self) -> int | None:
        """Return how many epochs are complete; None where that cannot be read."""
        try:
            return self.run.epochs if self.params is None else None
        except FlairError:
            return None


def _seed(entry: Entry) -> int | None:
    return entry.run.record.seed if entry.run.record.seed >= 0 else entry.settings.get("seed")


COLUMNS: Final[Mapping[str, Callable[[Entry], Any]]] = {
    "folder": lambda entry: str(entry.run.folder),
    "name": lambda entry: entry.settings.get("name"),
    "row": lambda entry: entry.tag(Tag.ROW),
    "seed": _seed,
    "status": lambda entry: entry.state,
    "model": lambda entry: entry.tag(Tag.MODEL) or entry.settings.get("model.name"),
    "dataset": lambda entry: entry.tag(Tag.DATASET) or entry.settings.get("dataset.name"),
    "test/miou": lambda entry: entry.score("test/miou"),
    "val/miou": lambda entry: entry.score("val/miou"),
    "epoch": Entry.epochs,
    "seconds": lambda entry: entry.score("train/seconds"),
    "started": lambda entry: entry.run.started,
    "mlflow_id": lambda entry: entry.run.record.run_id or None,
}
"""What a table of runs has for each, by name; `epoch` counts the complete ones, `seconds` are those
of the training."""


def entries(
    roots: Sequence[Path] | None = None, *, sweep: str | None = None, tracking_uri: str = ""
) -> list[Entry]:
    """Return all runs below folders.

    Args:
        roots: The folders; None: `outputs` and `multirun` of where the user stands.
        sweep: The name or the folder of a sweep, whose runs alone are wanted.
        tracking_uri: Of an MLflow store, whose runs are taken instead.

    Raises:
        FlairError: There is no such folder or sweep, or the store does not answer.
    """
    if tracking_uri:
        every = list(_in_store(tracking_uri))
        return [each for each in every if sweep is None or each.tag(Tag.SWEEP) == sweep]
    if sweep is not None:
        roots = [sweep_folder(sweep)]
    found: dict[Path, Entry] = {}
    for root in results_folders() if roots is None else roots:
        if not root.is_dir():
            raise ConfigError(f"{root}: there is no such folder.")
        found |= {each.path.resolve(): Entry.read(each) for each in run_folders(root)}
    return list(found.values())


def sweep_folder(name: str) -> Path:
    """Return the folder that a word means: a path, or the name of a sweep.

    Raises:
        ConfigError: There is none.
    """
    for folder in (Path(name), multirun() / name):
        if folder.is_dir():
            return folder
    raise ConfigError(f"{name}: no such folder, and no sweep of this name in {multirun()}.")


def _in_store(uri: str) -> Iterator[Entry]:
    """Yield the runs that an MLflow store knows: from their folders, where these are here."""
    from flair2_exp.lifecycle.assembly import store_at
    from flair2_exp.tracking.store import database_path, search_runs

    if uri.startswith("sqlite:") and not database_path(uri).is_file():
        raise ConfigError(f"{uri}: there is no MLflow database {database_path(uri)}.")
    for run in store_at(uri).call("listing runs", lambda client: search_runs(client, {})):
        tags, info = run.data.tags, run.info
        if Tag.KIND in tags or Tag.ROW not in tags:
            continue
        folder = RunFolder(Path(tags.get(Tag.FOLDER) or "/dev/null"))
        here = Entry.read(folder) if folder.record.is_file() else None
        if here is not None and here.run.record.run_id == info.run_id:
            yield here
            continue
        record = RunRecord(
            tags, status=info.status, run_id=info.run_id, scores=dict(run.data.metrics),
            start=info.start_time or 0, end=info.end_time or 0,
        )  # fmt: skip
        note = f"{info.status.lower()} by MLflow; its folder is not on this machine"
        yield Entry(RecordedRun(folder, record), ELSEWHERE, note, run.data.params)


# --- choosing and sorting -----------------------------------------------------------------------

_CONDITION: Final = re.compile(r"\s*([^\s=!<>]+)\s*(!=|<=|>=|==?|<|>)\s*(.*?)\s*")


def selected(every: Iterable[Entry], conditions: Sequence[str]) -> list[Entry]:
    """Return the runs for which all conditions hold.

    Args:
        every: Runs.
        conditions: Each NAME OPERATOR VALUE, as `model=utt`, `seed=1,2`, `name=utt*`,
            `test/miou>=0.5`, `optimizer.lr<0.01`, `status!=done`. The name is that of a column, a
            score, an option or a group.

    Raises:
        UsageError: A condition of another form, or a name that no run has.
    """
    kept = list(every)
    for condition in conditions:
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise UsageError(
                f"where {condition!r}: expected NAME=VALUE, as model=utt, seed=1,2, name=utt* or "
                "test/miou>=0.5."
            )
        name, operator, wanted = match.groups()
        require_known(name, kept)
        kept = [each for each in kept if _holds(each.value(name), operator, wanted)]
    return kept


def require_known(name: str, every: Sequence[Entry]) -> None:
    """Refuse a name that is not a column, and that no run has.

    Raises:
        UsageError: It is unknown; the message offers near ones.
    """
    if name in COLUMNS or not every or any(each.value(name) is not None for each in every):
        return
    known = {option for option, _ in options(Config)}
    if name in known or f"{name}.name" in known:
        return
    scores = {score for each in every for score in each.run.record.scores}
    if "/" in name and not scores:  # none of them has measured anything yet
        return
    raise UsageError(
        f"{name}: no run has that; {nearest(name, sorted({*COLUMNS, *scores, *known}))}"
    )


def _holds(value: Any, operator: str, wanted: str) -> bool:
    """Return whether a value is as wanted; of several, separated by commas, it may be any."""
    words = [word.strip() for word in wanted.split(",")]
    if operator in ("=", "=="):
        return any(_is(value, word) for word in words)
    if operator == "!=":
        return not any(_is(value, word) for word in words)
    if value is None:
        return False
    number, limit = _number(value), _number(wanted)
    one: Any = number if number is not None and limit is not None else _text(value)
    other: Any = limit if one is number else wanted
    less, equal = bool(one < other), bool(one == other)
    return {"<": less, "<=": less or equal, ">": not (less or equal), ">=": not less}[operator]


def _is(value: Any, word: str) -> bool:
    number, wanted = _number(value), _number(word)
    if number is not None and wanted is not None:
        return number == wanted
    return fnmatchcase(_text(value), word)


def _text(value: Any) -> str:
    return value.isoformat(" ", "seconds") if isinstance(value, datetime) else render(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def ordered(every: Iterable[Entry], by: str) -> list[Entry]:
    """Return runs in the order of a column, those that lack it last.

    Args:
        every: Runs.
        by: Its name. Scores are sorted from the highest, losses and all else from the lowest; a `-`
            in front turns that around.

    Raises:
        UsageError: A name that no run has.
    """
    runs = list(every)
    name = by.removeprefix("-")
    require_known(name, runs)
    falling = ("/" in name and "loss" not in name and "seconds" not in name) != by.startswith("-")
    values = [(each.value(name), each) for each in runs]
    present = [pair for pair in values if pair[0] is not None and pair[0] == pair[0]]
    numeric = all(_number(value) is not None for value, _ in present)

    def key(pair: tuple[Any, Entry]) -> Any:
        return _number(pair[0]) if numeric else _text(pair[0])

    first = [each for _, each in sorted(present, key=key, reverse=falling)]
    there = {id(each) for each in first}
    return [*first, *(each for each in runs if id(each) not in there)]


_NOT_SHOWN: Final = ("seed", "fingerprint", "version", "model.name", "dataset.name")
"""What decides a run's result and is another column, or not an option."""


def differing(every: Sequence[Entry]) -> dict[str, list[Any]]:
    """Return the options that decide results and of which these runs have different values.

    Returns:
        By dotted name the value of each run; None where it does not use the option.
    """
    decided = [each.run.record.deciding for each in every if each.state != DAMAGED]
    names = dict.fromkeys(name for each in decided for name in each)
    wanted = [n for n in names if n not in _NOT_SHOWN and not n.startswith("code.")]
    values = {name: [each.run.record.deciding.get(name) for each in every] for name in wanted}
    return {
        name: column
        for name, column in values.items()
        if len({render(each.get(name)) for each in decided}) > 1
    }
