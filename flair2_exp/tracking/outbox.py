"""The way of a run's records to MLflow: in order, none lost where it does not answer, none doubled.

A record that cannot be sent is kept in a folder of the run, and so are all that come after it. They
are sent when the store answers again, at the end, or by a later command. An artifact that fails
while the store is well waits alone: it holds back neither metrics nor how the run ended.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.errors import TrackingError
from flair2_exp.tracking.pending import Pending, Record
from flair2_exp.tracking.store import Store, end_run

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

_TEXTS_PER_CALL: Final = 100
"""Parameters or tags that MLflow takes in one call."""
_CHARACTERS_PER_CALL: Final = 150_000
"""A call may have 10⁶ bytes, and JSON may need six of them for a character."""
_METRICS_PER_CALL: Final = 1000
_FIRST_PAUSE: Final = 15.0
_LONGEST_PAUSE: Final = 300.0
"""Seconds for which a store that failed is left alone, doubled at each failure."""
_OF_ARTIFACTS: Final = ("artifact", "text", "removal")
"""Kinds of records that go to the place of artifacts, which can fail while the store is well."""
_LAST_PAUSES: Final = (1.0, 15.0)
"""The first and the longest pause at the end of a run, where nothing else is left to do."""


def deliver_command(folder: Path, uri: str = "") -> str:
    """Return the command that delivers what a folder holds.

    Args:
        folder: Of a run or a sweep.
        uri: The store's address, without credentials; empty for the store that the folder names.
    """
    words = ["python", "-m", "flair2_exp", "deliver", str(folder.absolute())]
    return shlex.join([*words, *(["--tracking-uri", uri] if uri else [])])


class Outbox:
    """Sends the records of one run, or keeps them until they can be sent.

    Args:
        store: Where the run is kept.
        run_id: MLflow's id of the run.
        folder: Holds what cannot be sent.
        resumed: The run may have metrics already: those are not sent again.

    Attributes:
        store: Where the run is kept.
        run_id: MLflow's id of the run.
        resumed: As given.
    """

    def __init__(self, store: Store, run_id: str, folder: Path, *, resumed: bool) -> None:
        self.store = store
        self.run_id = run_id
        target = {"run_id": run_id, "uri": store.address, "folder": str(folder.absolute())}
        self._pending = Pending(folder, target)
        self.resumed = resumed
        self._stored_values: dict[str, dict[int, float]] = {}
        self._aside: set[int] = set()
        self._retry_at = 0.0
        self._pause = _FIRST_PAUSE
        self._warned = False
        if self._pending.torn:
            _log.warning(
                f"{folder}: {self._pending.torn} torn records, of a process that was killed while "
                "it wrote them, cannot be sent and are left out."
            )

    def __len__(self) -> int:
        """The number of records that wait."""
        return len(self._pending)

    def send(self, record: Record, retries: int = 0) -> None:
        """Send one record, behind those that wait; keep it if that fails."""
        if time.monotonic() < self._retry_at or not self.send_pending(retries):
            self._pending.keep(record)
            return
        try:
            if not self._deliver(record, retries):
                self._keep_aside(record)
        except TrackingError as error:
            self._pending.keep(record)
            self._wait_after(error)

    def _keep_aside(self, record: Record) -> None:
        self._pending.keep(record)
        self._aside = {line for line, _ in self._pending.records()}

    def send_pending(self, retries: int) -> bool:
        """Send what waits in the folder, in order; return whether the store takes records.

        Artifacts that have failed by themselves wait for `retry_now`.
        """
        waiting = len(self._pending) > len(self._aside)
        try:
            for line, record in self._pending.records() if waiting else ():
                if line in self._aside:
                    continue
                if self._deliver(record, retries):
                    self._pending.mark_sent(line)
                else:
                    self._aside.add(line)
        except TrackingError as error:
            self._wait_after(error)
            return False
        if waiting:
            # What was sent just now is not among the values that were read before it.
            self._stored_values.clear()
            self._pause = _FIRST_PAUSE
        if not self._pending:
            self._pending.clear()
            if waiting:
                self._warned = False
                _log.warning("MLflow (%s) takes data again: all that waited is sent.", self.store)
        return True

    def retry_now(self) -> None:
        """Let the next record be tried at once, however lately the store has failed."""
        self._retry_at = 0.0
        self._aside.clear()

    def insist(self, seconds: float) -> None:
        """Try to send what waits, again and again, for some seconds at most."""
        end, (pause, longest) = time.monotonic() + seconds, _LAST_PAUSES
        if self._pending and seconds:
            _log.warning(
                f"MLflow ({self.store}) does not take everything yet: trying for {seconds:g} s "
                "(tracking.delivery_seconds)."
            )
        while self._pending and (left := end - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)
            self.retry_now()
            self.send_pending(retries=0)

    def warn_of_pending(self) -> None:
        """Say where the records are that still wait, if any do, and what sends them."""
        if self._pending:
            _log.warning(
                f"MLflow ({self.store}) still does not take everything: {len(self._pending)} "
                f"records are kept in {self._pending.folder}.\nThe same command sends them, and so "
                f"does: {deliver_command(self._pending.folder.parent)}"
            )

    def _wait_after(self, error: TrackingError) -> None:
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._warn_once(error)

    def _warn_once(self, error: TrackingError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                f"{str(error).splitlines()[0]}\nNothing is lost: what MLflow does not take is "
                f"kept in {self._pending.folder} and sent later."
            )

    def _deliver(self, record: Record, retries: int) -> bool:
        """Send one record; return False for an artifact that fails while the store is well.

        One that MLflow calls invalid, or whose file is gone, would stay so: warn and leave it out.

        Raises:
            TrackingError: The store does not take it.
        """
        try:
            what = f"storing {record['kind']}"
            self.store.call(what, lambda client: self._log(client, record), retries=retries)
        except TrackingError as error:
            gone = record["kind"] == "artifact" and not Path(record["file"]).exists()
            if gone or getattr(error.__cause__, "error_code", "") == "INVALID_PARAMETER_VALUE":
                _log.warning("%s", str(error).splitlines()[0])
                return True
            if record["kind"] not in _OF_ARTIFACTS or not self._store_answers():
                raise
            if record["kind"] == "removal":  # what stays there is old, no more
                _log.warning("%s", str(error).splitlines()[0])
                return True
            self._warn_once(error)
            return False
        return True

    def _store_answers(self) -> bool:
        """Return whether the store itself is well, though the place of its artifacts is not."""
        try:
            self.store.call("reading the run", lambda client: client.get_run(self.run_id))
        except TrackingError:
            return False
        return True

    def _log(self, client: MlflowClient, record: Record) -> None:
        match record:
            case {"kind": "metrics", "metrics": metrics}:
                new = self._new_metrics(client, metrics)
                while chunk := list(islice(new, _METRICS_PER_CALL)):
                    client.log_batch(self.run_id, metrics=chunk, synchronous=True)
            case {"kind": "tags", "tags": tags}:
                send_tags(client, self.run_id, tags)
            case {"kind": "artifact", "file": file, "folder": folder}:
                client.log_artifact(self.run_id, file, folder or None)
            case {"kind": "text", "text": text, "path": path}:
                client.log_text(self.run_id, text, path)
            case {"kind": "dataset"}:
                client.log_inputs(self.run_id, [_dataset_input(record)])
            case {"kind": "removal", "path": path}:
                self.store.remove_artifacts(client, self.run_id, path)
            case {"kind": "status", "status": status, "end": end}:
                end_run(client, self.run_id, status, end)

    def _new_metrics(
        self, client: MlflowClient, metrics: list[tuple[str, float, int, int]]
    ) -> Iterator[Metric]:
        """Yield the metrics that a resumed run does not have yet."""
        from mlflow.entities import Metric

        for name, value, timestamp, step in metrics:
            if not self.resumed or not self._has(client, name, step, value):
                yield Metric(name, value, timestamp, step)

    def _has(self, client: MlflowClient, name: str, step: int, value: float) -> bool:
        if name not in self._stored_values:
            history = client.get_metric_history(self.run_id, name)
            self._stored_values[name] = {each.step: each.value for each in history}
        stored = self._stored_values[name].get(step)
        return stored == value or (stored is not None and math.isnan(stored) and math.isnan(value))


def _dataset_input(record: Record) -> DatasetInput:
    """Return a record of a data set as MLflow's entity."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = Dataset(
        name=record["name"],
        digest=record["digest"],
        source_type="local",
        source=json.dumps({"uri": record["source"]}),
        profile=json.dumps(record["profile"]),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, record["context"])])


def send_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Store parameters, in as many calls as MLflow needs."""
    from mlflow.entities import Param

    for chunk in _chunks(params):
        client.log_batch(run_id, params=[Param(*pair) for pair in chunk], synchronous=True)


def send_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Store tags, in as many calls as MLflow needs."""
    from mlflow.entities import RunTag

    for chunk in _chunks(tags):
        client.log_batch(run_id, tags=[RunTag(*pair) for pair in chunk], synchronous=True)


def _chunks(texts: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    """Yield names and values in portions that one call may hold, in number and in size."""
    chunk: list[tuple[str, str]] = []
    size = 0
    for name, value in texts.items():
        length = len(name) + len(value)
        if chunk and (len(chunk) >= _TEXTS_PER_CALL or size + length > _CHARACTERS_PER_CALL):
            yield chunk
            chunk, size = [], 0
        chunk.append((name, value))
        size += length
    if chunk:
        yield chunk
