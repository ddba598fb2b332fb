"""The way of a run's records to MLflow: in order, none lost where it does not answer, none doubled.

A record that cannot be sent is kept in a folder of the run, and so are all that come after it. They
are sent when the store answers again, at the end, or when the run is resumed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.errors import TrackingError
from flair2_exp.tracking.pending import Pending, Record
from flair2_exp.tracking.store import Store, end_run

if TYPE_CHECKING:
    from mlflow.entities import Metric
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


class Outbox:
    """Sends the records of one run, or keeps them until they can be sent.

    Attributes:
        store: Where the run is kept.
        run_id: MLflow's id of the run.
        resumed: The run may have metrics already: those are not sent again.
    """

    def __init__(self, store: Store, run_id: str, folder: Path, *, resumed: bool) -> None:
        self.store = store
        self.run_id = run_id
        self._pending = Pending(folder)
        self.resumed = resumed
        self._stored_values: dict[str, dict[int, float]] = {}
        self._retry_at = 0.0
        self._pause = _FIRST_PAUSE
        self._warned = False

    def send(self, record: Record, retries: int = 0) -> None:
        """Send one record, behind those that wait; keep it if that fails."""
        if time.monotonic() < self._retry_at or not self.send_pending(retries):
            self._pending.keep(record)
            return
        try:
            self._deliver(record, retries)
        except TrackingError as error:
            self._pending.keep(record)
            self._wait_after(error)

    def send_pending(self, retries: int) -> bool:
        """Send what waits in the folder, in order; return whether nothing waits any more."""
        if not self._pending:
            return True
        try:
            for line, record in self._pending.records():
                self._deliver(record, retries)
                self._pending.mark_sent(line)
        except TrackingError as error:
            self._wait_after(error)
            return False
        self._pending.clear()
        self._pause = _FIRST_PAUSE
        _log.warning("MLflow (%s) takes data again: all that waited is sent.", self.store)
        self._warned = False
        return True

    def retry_now(self) -> None:
        """Let the next record be tried at once, however lately the store has failed."""
        self._retry_at = 0.0

    def warn_of_pending(self) -> None:
        """Say where the records are that still wait, if any do."""
        if self._pending:
            _log.warning(
                f"MLflow ({self.store}) still does not take everything: {len(self._pending)} "
                f"records are kept in {self._pending.folder} and are sent when the run "
                f"{self.run_id} is resumed."
            )

    def _wait_after(self, error: TrackingError) -> None:
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if not self._warned:
            self._warned = True
            _log.warning(
                f"{str(error).splitlines()[0]}\nThe run continues; what MLflow does not take is "
                f"kept in {self._pending.folder} and sent later."
            )

    def _deliver(self, record: Record, retries: int) -> None:
        """Send one record; one that MLflow calls invalid would stay so: warn and leave it out."""
        try:
            what = f"storing {record['kind']}"
            self.store.call(what, lambda client: self._log(client, record), retries=retries)
        except TrackingError as error:
            if getattr(error.__cause__, "error_code", "") != "INVALID_PARAMETER_VALUE":
                raise
            _log.warning("%s", str(error).splitlines()[0])

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
