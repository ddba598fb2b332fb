"""Runs for a report, from an MLflow store or server."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import glob
import json
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flair2_exp.errors import ConfigError, DataError, TrackingError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import CONFIG, DECIDING, FINISHED, RunRecord, read_yaml
from flair2_exp.report.counts import Counts, read_counts
from flair2_exp.report.runs import CURVES, AbsentRun, Curve, RunSet, ScoredRun
from flair2_exp.tracking.store import Store, database_path, local_store, open_store, search_runs
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import flat_text

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

SECONDS = 8.0
"""For an answer of the store."""


def read_mlflow(
    tracking_uri: str,
    *,
    sweep: str | None = None,
    tags: Mapping[str, str] | None = None,
    run_ids: Sequence[str] = (),
    curves: bool = True,
) -> RunSet:
    """Read runs from an MLflow store or server, over all its experiments.

    Args:
        tracking_uri: As `sqlite:///mlflow.db` or `http://127.0.0.1:5000`.
        sweep: Runs with the tag `flair2.sweep` of this value.
        tags: Runs that have all these tags.
        run_ids: These runs, by id.
        curves: Whether to read the metric that a report's figures draw over the epochs. It is one
            query per run; all else of all runs comes in one.

    Returns:
        Runs, oldest first. Of several finished runs of one row, seed and identity the latest
        counts; a run that did not finish and was done again is left out.

    Raises:
        ConfigError: Nothing was asked for or nothing is there.
        TrackingError: The store does not answer or has no such run.
    """
    wanted = {**(tags or {}), **({str(Tag.SWEEP): sweep} if sweep else {})}
    if not wanted and not run_ids:
        raise ConfigError("name the runs of the report: a sweep, a tag or run ids.")
    with _seldom_collected(), _opened(tracking_uri) as store:
        latest = _latest(_found(store, wanted, run_ids))
        runs = store.call_each("reading runs", partial(_read, store), latest)
        return RunSet.of(_with_curves(store, runs) if curves else runs)


def _found(store: Store, wanted: Mapping[str, str], run_ids: Sequence[str]) -> list[MlflowRun]:
    """Return the runs that have these tags or ids, oldest first of those with the tags."""
    runs = store.call("reading runs", lambda client: [client.get_run(each) for each in run_ids])
    if wanted:
        runs += store.call("looking for runs", lambda client: search_runs(client, wanted))
    runs = [run for run in runs if Tag.ROW in run.data.tags]  # a sweep's parent has no row
    if not runs:
        described = [f"{key}={value}" for key, value in wanted.items()] + list(run_ids)
        raise ConfigError(f"there is no run with {', '.join(described)} in {store}.")
    return runs


def _latest(runs: Sequence[MlflowRun]) -> list[MlflowRun]:
    """Return the latest finished one of the runs of each experiment and seed, else the latest."""
    attempts: dict[tuple[str, int, str], list[MlflowRun]] = {}
    for run in runs:
        record = _record(run)
        attempts.setdefault((record.row, record.seed, record.identity), []).append(run)
    finished = ([run for run in each if run.info.status == FINISHED] for each in attempts.values())
    pairs = zip(finished, attempts.values(), strict=True)
    return [(of_each or each)[-1] for of_each, each in pairs]


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Look for garbage less often: MLflow makes an object of each value, most of which stay.

    With Python's own threshold of 700 new objects that looking takes nearly half of the time.
    """
    own = gc.get_threshold()
    gc.set_threshold(max(own[0], 100_000) if own[0] else 0, *own[1:])  # 0: never
    try:
        yield
    finally:
        gc.set_threshold(*own)


@contextlib.contextmanager
def _opened(tracking_uri: str) -> Iterator[Store]:
    """Open a store that exists, for reading: MLflow makes tables where there are none."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if not tracking_uri.startswith("sqlite:"):
        yield open_store(tracking_uri)  # which asks a server for a sign of life
        return
    database = database_path(tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        readable = database
        if database.is_file() and not os.access(database.parent, os.W_OK):
            # Even to read it, sqlite makes files beside a database with a write-ahead log.
            for file in database.parent.glob(f"{glob.escape(database.name)}*"):
                shutil.copyfile(file, Path(folder) / file.name)
            readable = Path(folder) / database.name
        if not _holds_runs(readable):
            raise TrackingError(
                f"there is no MLflow database {database}.\nName the store with --tracking-uri."
            )
        store = local_store(readable, SECONDS)  # not to be written
        store.folder = database.parent
        yield store


def _holds_runs(database: Path) -> bool:
    if not database.is_file():
        return False
    address = f"{database.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        try:
            query = "SELECT 1 FROM sqlite_master WHERE name = 'runs'"
            return connection.execute(query).fetchone() is not None
        except sqlite3.Error:
            return False


def _record(run: MlflowRun) -> RunRecord:
    """Return an MLflow run's record, without what decides the result (`_read_deciding`)."""
    tags = dict(run.data.tags)
    return RunRecord(
        tags=tags,
        status=run.info.status,
        run_id=run.info.run_id,
        scores={name: float(value) for name, value in run.data.metrics.items()},
        error=tags.get(Tag.ERROR, ""),
    )


def _read(store: Store, client: MlflowClient, run: MlflowRun) -> ScoredRun | AbsentRun:
    """Read what a run counted and what decided its result, or why it has no score."""
    record, source = _record(run), f"MLflow run {run.info.run_id}"
    if record.status != FINISHED:
        return AbsentRun.of(record, source)
    try:
        counts = _read_counts(store, client, run)
    except DataError as error:
        return AbsentRun(record.row, record.seed, "damaged", f"{source}: {error}")
    record.deciding = _read_deciding(store, client, run)
    noted = record.tags.get(Tag.FOLDER)
    folder = Path(noted) if noted else None
    return ScoredRun(
        record, counts, _read_settings(store, client, run), source=source, folder=folder
    )


def _read_counts(store: Store, client: MlflowClient, run: MlflowRun) -> Counts:
    artifact = f"results/{RunFolder(Path()).confusion.name}"
    try:
        with store.artifact(client, run, artifact) as path:
            try:
                return read_counts(path)
            except DataError as error:
                raise DataError(str(error).replace(str(path), artifact)) from None
    except TrackingError as error:
        raise DataError(f"it has no artifact {artifact} ({error})") from None


def _read_settings(store: Store, client: MlflowClient, run: MlflowRun) -> dict[str, str]:
    """Return a run's whole config, flat, values as text; without the artifact its parameters."""
    with contextlib.suppress(TrackingError, DataError), store.artifact(client, run, CONFIG) as path:
        return flat_text(read_yaml(path))
    return dict(run.data.params)


def _read_deciding(store: Store, client: MlflowClient, run: MlflowRun) -> dict[str, Any]:
    """Return what decides a run's result; empty where the run does not say."""
    values = None
    unread = contextlib.suppress(TrackingError, OSError, ValueError)
    with unread, store.artifact(client, run, DECIDING) as path:
        values = json.loads(path.read_text("utf-8"))
    return values if isinstance(values, dict) else {}


def _with_curves(
    store: Store, runs: Sequence[ScoredRun | AbsentRun]
) -> list[ScoredRun | AbsentRun]:
    """Return the runs with the first of `CURVES` that any of them measured: the one drawn."""
    scored = [run for run in runs if isinstance(run, ScoredRun)]
    for name in CURVES:
        ids = [run.record.run_id for run in scored if name in run.record.scores]
        histories = store.call_each(f"reading {name}", partial(_history, name), ids)
        curves = {run: curve for run, curve in zip(ids, histories, strict=True) if curve}
        if curves:
            return [
                dataclasses.replace(run, curves={name: curves[run.record.run_id]})
                if isinstance(run, ScoredRun) and run.record.run_id in curves
                else run
                for run in runs
            ]
    return list(runs)


def _history(name: str, client: MlflowClient, run_id: str) -> Curve:
    """Return a metric's history, one value per epoch, counted from 1 in the order of the steps."""
    history = client.get_metric_history(run_id, name)
    by_step = {point.step: point.value for point in history if math.isfinite(point.value)}
    return [(float(at), by_step[step]) for at, step in enumerate(sorted(by_step), 1)]
