"""Many finished runs, in folders and in an MLflow store, made in seconds.

One run is composed and delivered to a new store as every run is. The others are copies of it, of
its folder's files and of its rows in the database, with a name and a seed of their own.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from hydra import compose, initialize_config_dir

from flair2_exp.cli.main import register
from flair2_exp.config.compose import typed
from flair2_exp.config.experiment import Config
from flair2_exp.config.groups import config_folder
from flair2_exp.lifecycle.delivery import rebuild
from flair2_exp.lifecycle.experiment import resolved_yaml
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import DECIDING, FINISHED, RunRecord
from flair2_exp.nomenclature import FLAIR_13
from flair2_exp.tracking.history import History
from flair2_exp.tracking.provenance import collect
from flair2_exp.tracking.store import database_path, local_uri, open_store
from flair2_exp.tracking.tags import Tag

SWEEP: Final = "many"
SEEDS: Final = 10
"""Per row."""
EPOCHS: Final = 20
AREAS, PATCHES = 24, 96
"""Few, for what a report of FLAIR #2's patches costs is measured by itself."""
_RATE: Final = 1e-4


@dataclass(frozen=True)
class ManyRuns:
    """Where the runs are.

    Attributes:
        folder: Of all run folders.
        uri: Of the sqlite store.
    """

    folder: Path
    uri: str


def make_runs(root: Path, runs: int, metrics: int) -> ManyRuns:
    """Make finished runs below an empty folder.

    Args:
        root: The folder.
        runs: How many, in rows of `SEEDS` seeds; the rows differ in the learning rate.
        metrics: How many each run has in MLflow, most of them with `EPOCHS` values.
    """
    many = ManyRuns(root / "multirun" / SWEEP, local_uri(root / "mlruns"))
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = typed(compose("config", [f"paths.root={root}", "name=row-000", "seed=0"]))
    folders = [
        RunFolder(many.folder / f"row-{at // SEEDS:03}" / f"seed={at % SEEDS}")
        for at in range(runs)
    ]
    tags = collect().tags() | {str(Tag.SWEEP): SWEEP}
    first, *others = folders
    record = _write_record(first, config, tags)
    _write_results(first, metrics)
    record.scores = json.loads(first.metrics.read_text("utf-8"))
    rebuild(first, record, open_store(many.uri))
    with closing(sqlite3.connect(database_path(many.uri))) as connection, connection:
        connection.execute("PRAGMA synchronous=OFF")
        for at, folder in enumerate(others, 1):
            rate = _RATE * (1 + at // SEEDS)
            optimizer = dataclasses.replace(config.optimizer, lr=rate)
            name, seed = folder.path.parent.name, at % SEEDS
            own = dataclasses.replace(config, name=name, seed=seed, optimizer=optimizer)
            copy = _write_record(folder, own, tags, f"{at:032x}")
            for file in (first.metrics, first.history, first.confusion):
                shutil.copyfile(file, folder.path / file.name)
            _copy_rows(connection, record.run_id, copy, own)
    return many


def _write_record(
    folder: RunFolder, config: Config, tags: Mapping[str, str], run_id: str = ""
) -> RunRecord:
    """Write the config and the record of a run, and return the record."""
    record = RunRecord.of(config, "f" * 16, folder, "e" * 16)
    record.tags |= tags
    record.run_id, record.start = run_id, 1_700_000_000_000
    record.finish(FINISHED)
    record.write(folder)
    folder.config.write_text(resolved_yaml(config), encoding="utf-8")
    return record


def _write_results(folder: RunFolder, metrics: int) -> None:
    """Write the history, the scores and the counts of a run."""
    generator = np.random.default_rng(0)
    scores = {
        **{"test/miou": 0.5, "test/loss": 1.0, "val/miou": 0.5, "val/loss": 1.0},
        **{"best/val/miou": 0.5, "best/val/loss": 1.0, "best/epoch": EPOCHS},
        **{"train/epochs": EPOCHS, "train/seconds": 60.0, "inference/seconds": 2.5},
    }
    by_epoch = ["val/miou", "val/loss", "train/loss"]
    further = metrics - len({*scores, *by_epoch})
    by_epoch += [f"val/iou/{at:02}" for at in range(further)]
    history = History(folder.history)
    for epoch in range(1, EPOCHS + 1):
        history.add(epoch, dict(zip(by_epoch, generator.random(len(by_epoch)), strict=True)))
    folder.metrics.write_text(json.dumps(scores), encoding="utf-8")
    counts = generator.integers(0, 5000, (PATCHES, 13, 13), dtype=np.int32)
    np.savez_compressed(
        folder.confusion,
        patch_ids=np.array([f"IMG_{at:06}" for at in range(PATCHES)]),
        areas=np.array([f"D{at % AREAS // 4:03}_2021/Z{at % 4 + 1}_NN" for at in range(PATCHES)]),
        confusion=counts,
        classes=np.array(FLAIR_13.names),
    )


def _copy_rows(connection: sqlite3.Connection, run: str, copy: RunRecord, config: Config) -> None:
    """Copy an MLflow run with its artifacts, as the run of another record and config."""
    for table, columns in _tables(connection):
        chosen = ", ".join("?" if name == "run_uuid" else f'"{name}"' for name in columns)
        connection.execute(
            f"INSERT INTO {table} SELECT {chosen} FROM {table} WHERE run_uuid = ?",
            (copy.run_id, run),
        )
    params = {"name": config.name, "seed": config.seed, "optimizer.lr": config.optimizer.lr}
    for table, values in (("params", params), ("tags", copy.tags)):
        connection.executemany(
            f"UPDATE {table} SET value = ? WHERE key = ? AND run_uuid = ?",
            [(str(value), key, copy.run_id) for key, value in values.items()],
        )
    query = "SELECT artifact_uri FROM runs WHERE run_uuid = ?"
    (address,) = connection.execute(query, (run,)).fetchone()
    connection.execute(
        "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
        (address.replace(run, copy.run_id), copy.run_id),
    )
    artifacts = Path(address.removeprefix("file://"))
    here = artifacts.parents[1] / copy.run_id / artifacts.name
    shutil.copytree(artifacts, here)
    (here / DECIDING).write_text(json.dumps(copy.deciding), encoding="utf-8")


def _tables(connection: sqlite3.Connection) -> Iterator[tuple[str, list[str]]]:
    """Yield the tables with something of a run, and their columns."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table'"
    for (table,) in connection.execute(query).fetchall():
        columns = [each[1] for each in connection.execute(f"PRAGMA table_info({table})")]
        if "run_uuid" in columns:
            yield table, columns
