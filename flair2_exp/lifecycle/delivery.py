"""What a run's folder has and its MLflow run lacks: the folder is the truth, MLflow a view of it.

A run that could not send everything leaves the rest in its folder (`unsent`). A store can be lost,
or another one be wanted: then the MLflow run is made again from the folder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.config.experiment import Config
from flair2_exp.errors import TrackingError
from flair2_exp.lifecycle.experiment import log_config, run_name
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import (
    ENDED,
    FINISHED,
    KILLED,
    MEMBERS,
    RunRecord,
    read_config,
    read_settings,
)
from flair2_exp.lifecycle.results import hand_over, is_by_epoch
from flair2_exp.tracking.outbox import Outbox
from flair2_exp.tracking.pending import Pending
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store

BEGUN: Final = "begun"
COMPLETE: Final = "complete"
"""Values of `Tag.REBUILT`."""

_SQLITE: Final = "sqlite:///"


@dataclass(frozen=True)
class Delivery:
    """What was delivered of a folder.

    Attributes:
        folder: Of a run, a sweep or a search.
        text: What was done, or what was in the way.
        left: How many records are still not delivered; 1 where that cannot be counted.
    """

    folder: Path
    text: str
    left: int = 0


def settle(folder: RunFolder, record: RunRecord, store: Store, parent: str = "") -> Delivery | None:
    """Send what a run could not, and how it ended; the caller holds its folder.

    Args:
        folder: The run's.
        record: The run's.
        store: Where its MLflow run is.
        parent: The id of the MLflow run that it stands under; empty for none, or the one it has.

    Returns:
        What was delivered; None where nothing was left to do.

    Raises:
        TrackingError: The store does not answer or does not have the run.
    """
    run = store.find(record.run_id)
    if run is None:
        from flair2_exp.tracking.run import unknown_run

        raise TrackingError(unknown_run(store, record.run_id, folder.path))
    sent = send_waiting(folder, run, store)
    if sent is not None and sent.left:
        return sent
    done = [sent.text] if sent is not None else []
    tags = run.data.tags
    if parent and tags.get(Tag.PARENT) != parent:
        store.call("setting the parent", lambda c: c.set_tag(run.info.run_id, Tag.PARENT, parent))
        done.append("put under its sweep")
    status = run.info.status
    if sent is not None:  # what was sent may have held the status
        status = store.call("reading the run", lambda c: c.get_run(run.info.run_id)).info.status
    if record.status in ENDED and status != record.status:
        from flair2_exp.tracking.store import end_run

        end = record.end or int(time.time() * 1000)
        store.call("closing", lambda c: end_run(c, run.info.run_id, record.status, end))
        done.append(f"set to {record.status}")
    return Delivery(folder.path, ", ".join(done)) if done else None


def send_waiting(folder: RunFolder, run: MlflowRun, store: Store) -> Delivery | None:
    """Send what waits in a folder to its MLflow run; None where nothing waits."""
    if not folder.unsent.is_dir():
        return None
    if run.info.lifecycle_stage == "deleted":
        return Delivery(folder.path, "its MLflow run was deleted: left as it is")
    outbox = Outbox(store, run.info.run_id, folder.unsent, resumed=True)
    before = len(outbox)
    outbox.send_pending(retries=1)
    sent = before - len(outbox)
    return Delivery(folder.path, f"{sent} of {before} records sent", len(outbox))


def address_of(folder: RunFolder, record: RunRecord | None) -> str:
    """Return the address of the store that a folder's MLflow run is in; empty where it has none.

    A local store that has moved with the folder is where it lies now.

    Raises:
        FlairError: The folder holds no config that says so.
    """
    target = Pending(folder.unsent).target
    if record is None:
        old = Path(target["folder"]).parent if "folder" in target else folder.path
        return address_now(target.get("uri", ""), old, folder.path)
    uri = record.store
    if record.run_id and not uri:
        from flair2_exp.tracking.store import local_uri

        config = read_config(folder)
        uri = config.tracking.uri or local_uri(config.paths.mlflow)
    return address_now(uri, Path(record.tags.get(Tag.FOLDER, folder.path)), folder.path)


def address_now(uri: str, old: Path, new: Path) -> str:
    """Return a store's address as it is, given that a folder was at `old` and is at `new`."""
    from flair2_exp.tracking.relocation import place_now

    if not uri.startswith(_SQLITE):
        return uri
    return f"{_SQLITE}{place_now(Path(uri.removeprefix(_SQLITE)), old, new.absolute())}"


def lacks(store: Store, run_id: str) -> bool:
    """Return whether a store has no run of this id, or one whose making was interrupted.

    Raises:
        TrackingError: The store does not answer.
    """
    run = store.find(run_id) if run_id else None
    return run is None or run.data.tags.get(Tag.REBUILT) == BEGUN


def rebuild(folder: RunFolder, record: RunRecord, store: Store, parent: str = "") -> Delivery:
    """Make a run's MLflow run from its folder, and note it there; the caller holds the folder.

    Its params, tags and times, the metrics by epoch, the results. Interrupted, the next call
    resumes with the same MLflow run.

    Args:
        folder: The run's.
        record: The run's; its id and its store are changed.
        store: Where to make it.
        parent: The id of the MLflow run that it stands under; empty for none.

    Raises:
        TrackingError: The store does not take it.
        FlairError: The folder does not hold a config of this version, or damaged results.
    """
    from flair2_exp.tracking.run import new_run, open_run, valid_tags

    config = read_config(folder)
    tags = {**record.tags, Tag.FOLDER: folder.path.absolute()}
    tags.pop(Tag.PARENT, None)
    record.tags = valid_tags({**tags, **({Tag.PARENT: parent} if parent else {})})
    begun = {**record.tags, str(Tag.REBUILT): BEGUN}
    experiment = config.tracking.experiment
    if not record.run_id or store.find(record.run_id) is None:
        store.close_dead_runs()
        experiment_id = store.ensure_experiment(experiment)
        # A process that was killed before it noted the run's id has left the run behind.
        left = {name: begun[name] for name in map(str, (Tag.FOLDER, Tag.IDENTITY, Tag.REBUILT))}
        record.run_id = store.find_run(experiment_id, left, status=KILLED) or new_run(
            store, experiment_id, run_name(config, record), begun, record.start
        )
        record.store = store.address
        record.write(folder)
    run = open_run(
        store,
        experiment,
        run_name(config, record),
        folder.unsent,
        tags=begun,
        run_id=record.run_id,
        take_over=True,
    )
    _fill(run, folder, record, config)
    return Delivery(folder.path, f"made again as MLflow run {run.run_id}", run.waiting)


def _fill(run: Run, folder: RunFolder, record: RunRecord, config: Config) -> None:
    """Give an MLflow run all that the folder holds, and end it as the run has ended."""
    from flair2_exp.tracking.history import History

    members = {n: each for n, each in read_settings(folder).items() if n == MEMBERS}
    log_config(config, record, run, members)
    rows = History(folder.history).rows
    for epoch, row in rows.items():
        run.log_metrics(row, epoch)
    scores = record.scores
    if not rows:  # a checkpoint that was tested without a training
        run.log_metrics({name: each for name, each in scores.items() if is_by_epoch(name)}, 1)
    if scores:
        hand_over(config, folder, run, scores, record.tags)
    if record.pruned:
        run.set_tags({Tag.PRUNED: True})
    if record.error:
        run.set_tags({Tag.ERROR: record.error})
    if folder.error.is_file() and record.status != FINISHED:
        run.log_text(folder.error.read_text("utf-8", errors="replace"), "error/traceback.txt")
    run.set_tags({Tag.REBUILT: COMPLETE})
    run.finish(record.status if record.status in ENDED else KILLED, record.end)


def waiting(folder: RunFolder) -> int:
    """Return how many records wait in a folder; 0 where none was ever kept."""
    return len(Pending(folder.unsent)) if folder.unsent.is_dir() else 0
