"""Which runs an ensemble is of: by folder, checkpoint, MLflow id, sweep or leaderboard row."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from flair2_exp.errors import ConfigError, FlairError, nearest
from flair2_exp.inference.stored import StoredRun
from flair2_exp.lifecycle.folder import RunFolder, run_folders
from flair2_exp.lifecycle.record import FINISHED, RunRecord
from flair2_exp.results.finding import is_run_id
from flair2_exp.tracking.tags import Tag

log = logging.getLogger(__name__)

RESULTS: Final = ("multirun", "outputs")
"""Where runs lie below the root of the results."""


def runs_of(words: Sequence[str], root: Path, tracking_uri: str = "") -> list[StoredRun]:
    """Return the runs that words name, in their order.

    Args:
        words: Each one a run (its folder, a checkpoint, the id of its MLflow run), a folder with
            runs below, as a sweep's, or a row of the leaderboard: `ROW`, or `SWEEP/ROW` where
            several sweeps have it. A row is all its finished runs below `multirun` and `outputs`;
            where there are none, those that the MLflow store knows.
        root: Of the results; `multirun`, `outputs` and `mlruns` are in it.
        tracking_uri: Of the MLflow store; empty is the local one.

    Raises:
        FlairError: A word names nothing or nothing finished, a run is named twice, or a row is
            of several data sets or has two runs of one seed.
    """
    runs: list[StoredRun] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir() and not RunFolder(path).config.is_file():
            runs += _finished_below(path)
        elif path.exists() or path.suffix in (".ckpt", ".pt") or is_run_id(word):
            runs.append(StoredRun.find(word, tracking_uri))
        else:
            runs += _of_row(word, root, tracking_uri)
    _require_distinct(runs)
    return runs


def _finished_below(start: Path) -> list[StoredRun]:
    """Return the finished runs below a folder, in natural order.

    Raises:
        ConfigError: There is none.
    """
    folders = list(run_folders(start))
    runs = [run for folder in folders if (run := _finished(folder)) is not None]
    if not runs:
        found = f"{len(folders)} that did not finish" if folders else "none at all"
        raise ConfigError(
            f"{start}: expected finished runs below it; there are {found}.\n"
            "Name the folder of a run, or of a sweep, as multirun/SWEEP."
        )
    return runs


def _finished(folder: RunFolder) -> StoredRun | None:
    """Return the network of a finished run; None, after a warning, where there is none."""
    try:
        record = RunRecord.read(folder)
        if record is not None and Tag.MEMBERS in record.tags:
            log.warning("%s is left out: it is an ensemble's score, and not a network", folder)
            return None
        if record is None or record.status != FINISHED:
            state = record.status.lower() if record else "without a readable record"
            log.warning("%s is left out: it is not a finished run (%s)", folder, state)
            return None
        return StoredRun.find(folder.path)
    except FlairError as error:
        log.warning("%s is left out: %s", folder, str(error).splitlines()[0])
        return None


def _of_row(word: str, root: Path, tracking_uri: str) -> list[StoredRun]:
    """Return the finished runs of a row, by seed.

    Raises:
        ConfigError: There is none; or they are of several data sets, or two of one seed.
    """
    folders, names = [], set()
    for folder, record in _records_below(root):
        names |= _names(record)
        if word in _names(record):
            folders.append(folder)
    runs = [run for folder in folders if (run := _finished(folder)) is not None]
    if not runs:
        found = _in_store(word, root, tracking_uri)
        runs = [run for folder in found if (run := _finished(folder)) is not None]
    if not runs:
        if folders:
            raise ConfigError(f"row {word} has no finished run: {folders[0]} is one of its runs.")
        where = f"{' or '.join(RESULTS)} of {root.absolute()}, or in MLflow"
        rows = f" Rows: {nearest(word, sorted(names))}" if names else ""
        raise ConfigError(
            f"{word} is not a run, and not a row with runs in {where}.{rows}\n"
            "Name runs by folder, checkpoint or MLflow id, or a row as ROW or SWEEP/ROW."
        )
    _require_one_row(word, runs)
    return sorted(runs, key=lambda run: run.record.seed if run.record else -1)


def _records_below(root: Path) -> Iterator[tuple[RunFolder, RunRecord]]:
    """Yield the runs of the results' root that train; those of other versions are left out."""
    for name in RESULTS:
        if not (root / name).is_dir():
            continue
        for folder in run_folders(root / name):
            with suppress(FlairError):
                record = RunRecord.read(folder)
                if record is not None and Tag.MEMBERS not in record.tags:
                    yield folder, record


def _names(record: RunRecord) -> set[str]:
    """Return what a run's row is called: by itself, and with its sweep."""
    sweep = record.tags.get(Tag.SWEEP)
    return {record.row, *([f"{sweep}/{record.row}"] if sweep else [])}


def _in_store(word: str, root: Path, tracking_uri: str) -> list[RunFolder]:
    """Return the folders of a row's finished runs that an MLflow store knows; each once."""
    from flair2_exp.lifecycle.assembly import store_at
    from flair2_exp.tracking.store import database_path, local_uri, search_runs

    uri = tracking_uri or local_uri(root / "mlruns")
    if uri.startswith("sqlite:") and not database_path(uri).is_file():
        return []
    store = store_at(uri)
    cuts = [at for at, each in enumerate(word) if each == "/"]
    wanted: list[Mapping[str, str]] = [
        {str(Tag.ROW): word},
        *({str(Tag.SWEEP): word[:at], str(Tag.ROW): word[at + 1 :]} for at in cuts),
    ]
    found = store.call(
        "looking for runs",
        lambda client: [r for tags in wanted for r in search_runs(client, tags, status=FINISHED)],
    )
    trained = [run.data.tags for run in found if Tag.MEMBERS not in run.data.tags]
    places = dict.fromkeys(Path(tags.get(Tag.FOLDER, "")) for tags in trained)
    for place in places:
        if not place.is_dir():
            log.warning("%s is left out: the folder of that run is not on this machine", place)
    return [RunFolder(place) for place in places if place.is_dir()]


def _require_one_row(word: str, runs: Sequence[StoredRun]) -> None:
    """Refuse runs of one row name that were made on different data, or twice."""
    data: dict[tuple[str, str], StoredRun] = {}
    seeds: dict[int, StoredRun] = {}
    for run in runs:
        assert run.record is not None, "found by its record"
        dataset, seed = run.record.tags.get(Tag.DATASET, ""), run.record.seed
        data.setdefault((dataset, run.record.fingerprint), run)
        twin = seeds.setdefault(seed, run)
        if len(data) > 1:
            (one, first), (other, second) = list(data.items())
            names = [f"{first.folder} ({one[0]})", f"{second.folder} ({other[0]})"]
            raise ConfigError(
                f"row {word} has runs of different data: {' and '.join(names)}.\n"
                "Name the runs by their folders, or the folder of one sweep."
            )
        if twin is not run:
            raise ConfigError(
                f"row {word} has two runs of seed {seed}: {twin.folder} and {run.folder}.\n"
                "Name the row as SWEEP/ROW, or the runs by their folders."
            )


def _require_distinct(runs: Sequence[StoredRun]) -> None:
    """Refuse a network that is named twice, or was trained twice."""
    files: dict[Path, StoredRun] = {}
    trainings: dict[str, StoredRun] = {}
    for run in runs:
        twin = files.setdefault(run.checkpoint.resolve(), run)
        if twin is not run:
            raise ConfigError(f"{run.checkpoint} is named twice.\nName each run of the mean once.")
        if run.record is None or not run.record.identity:
            continue
        twin = trainings.setdefault(run.record.identity, run)
        # Several checkpoints of one training may be averaged.
        if _place(twin) != _place(run):
            raise ConfigError(
                f"{twin.folder} and {run.folder} are the same experiment with the same seed.\n"
                "Name one of the two."
            )


def _place(run: StoredRun) -> Path | None:
    return run.folder.path.resolve() if run.folder else None
