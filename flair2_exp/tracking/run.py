"""One MLflow run, written so that tracking never costs a training.

What is wrong before the training starts is refused (`TrackingError`). What goes wrong later, a
server that went away or a full disk, is told once and kept in a folder of the run; it is sent when
the store answers again, at the end, or when the run is resumed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import posixpath
import shutil
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.errors import TrackingError
from flair2_exp.files import write_text
from flair2_exp.signals import FINISHED, status_of
from flair2_exp.tracking.params import flatten, render, shorten, valid_name, valid_names
from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.provenance import scrub, scrub_value
from flair2_exp.tracking.store import ENDED_TAG, Store, end_run

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    Record = dict[str, Any]

_log = logging.getLogger(__name__)

PARENT_TAG: Final = "mlflow.parentRunId"
DESCRIPTION_TAG: Final = "mlflow.note.content"
ERROR_TAG: Final = "flair2.error"
CHANGED_TAG: Final = "flair2.changed_params"

_TAG_LIMIT: Final = 8000
"""MLflow's limit for a tag's value (mlflow.utils.validation)."""
_NOTE_LIMIT: Final = 4000
"""Characters of a description that MLflow's page shows well."""
_TEXTS_A_CALL: Final = 100
"""Parameters or tags that MLflow takes in one call."""
_CHARACTERS_A_CALL: Final = 150_000
"""A call may have 10⁶ bytes, and JSON may need six of them for a character."""
_METRICS_A_CALL: Final = 1000
_BUFFERED_METRICS: Final = 500
_BUFFERED_SECONDS: Final = 10.0
"""Metrics wait for this many or this long; one call takes 10 to 20 ms whatever it holds."""
_FIRST_PAUSE: Final = 15.0
_LONGEST_PAUSE: Final = 300.0
"""Seconds for which a store that failed is left alone, doubled at each failure."""


class Run(ABC):
    """What an experiment tells about itself; a context manager that ends the run as it ended."""

    run_id: str = ""

    @abstractmethod
    def log_params(self, config: Mapping[str, Any]) -> None:
        """Store a config, nested or flat, as parameters with dotted names."""

    @abstractmethod
    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None
    ) -> None:
        """Store numbers by name at a step; `timestamp` in milliseconds, now by default."""

    @abstractmethod
    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Store a copy of a file under an artifact folder."""

    @abstractmethod
    def log_text(self, text: str, path: str) -> None:
        """Store a text, scrubbed of credentials, as the artifact `path`."""

    @abstractmethod
    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; one that is there gets the new value."""

    @abstractmethod
    def flush(self) -> None:
        """Send what waits."""

    @abstractmethod
    def finish(self, status: str = FINISHED) -> None:
        """Send what waits and close the run: FINISHED, FAILED or KILLED. A second call: nothing."""

    def log_json(self, value: object, path: str) -> None:
        """Store plain values as the JSON artifact `path`."""
        self.log_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", path)

    def log_files(self, files: Mapping[str, Any]) -> None:
        """Store artifacts by path: a text as it is, anything else as JSON."""
        for path, content in files.items():
            if isinstance(content, str):
                self.log_text(content, path)
            else:
                self.log_json(content, path)

    def describe(self, markdown: str) -> None:
        """Set the description that MLflow shows on the run's page."""
        self.set_tags({DESCRIPTION_TAG: markdown})

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if exception is not None and not (isinstance(exception, SystemExit) and not exception.code):
            self.set_tags({ERROR_TAG: f"{type(exception).__name__}: {exception}"})
            lines = traceback.format_exception(kind, exception, trace)
            self.log_text("".join(lines), "error/traceback.txt")
        self.finish(status_of(exception))


class NullRun(Run):
    """Tracking turned off: takes everything, keeps nothing, imports nothing."""

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None
    ) -> None:
        """Do nothing."""

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Do nothing."""

    def log_text(self, text: str, path: str) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def finish(self, status: str = FINISHED) -> None:
        """Do nothing."""


class TrackedRun(Run):
    """A run in an MLflow store; made by `start` or `resume`.

    Attributes:
        run_id: MLflow's id of the run.
        store: Where it is kept.
    """

    def __init__(self, store: Store, run_id: str, pending: Path, *, resumed: bool) -> None:
        self.store = store
        self.run_id = run_id
        self._resumed = resumed
        self._known: dict[str, dict[int, float]] = {}
        self._metrics: list[tuple[str, float, int, int]] = []
        self._last_sent = time.monotonic()
        self._pending = _Pending(pending)
        self._retry_at = 0.0
        self._pause = _FIRST_PAUSE
        self._warned = False
        self._finished = False

    @classmethod
    def start(
        cls,
        store: Store,
        experiment_id: str,
        *,
        name: str,
        pending: Path,
        tags: Mapping[str, object] | None = None,
        parent_run_id: str | None = None,
    ) -> TrackedRun:
        """Make a new run, RUNNING, that names this process as its writer.

        Args:
            store: An open store.
            experiment_id: From `Store.ensure_experiment`.
            name: What the run is called on MLflow's pages.
            pending: A folder of this run, made only if something cannot be sent.
            tags: Further tags.
            parent_run_id: The run under which MLflow shows this one.

        Raises:
            TrackingError: The store does not take it.
        """
        wanted = {**(tags or {}), **WriterProcess.this().tags()}
        if parent_run_id:
            wanted[PARENT_TAG] = parent_run_id
        run = store.call(
            "making the run",
            lambda client: client.create_run(experiment_id, tags=_tags(wanted), run_name=name),
        )
        return cls(store, run.info.run_id, pending, resumed=False)

    @classmethod
    def resume(
        cls,
        store: Store,
        run_id: str,
        *,
        pending: Path,
        tags: Mapping[str, object] | None = None,
        take_over: bool = False,
    ) -> TrackedRun:
        """Go on with a run: RUNNING again, and what an earlier process could not send is sent.

        A metric that the run already has with the same step and value is not stored twice.

        Args:
            store: The store that has the run.
            run_id: Its id.
            pending: The same folder as before.
            tags: Tags to set anew.
            take_over: The caller holds the run's folder (`locking.locked`), so that nobody else
                can be writing: do not ask. Else a run whose process was killed on another machine
                could never be resumed, since nobody here can know that it has ended.

        Raises:
            TrackingError: There is no such run, or another process may be writing it.
        """
        earlier = store.call(f"looking for the run {run_id}", lambda c: c.get_run(run_id))
        here = WriterProcess.this()
        writer = WriterProcess.from_tags(earlier.data.tags)
        if (
            not take_over
            and earlier.info.status == "RUNNING"
            and writer not in (None, here)
            and not writer.has_ended(shared_store=not store.is_local)
        ):
            raise TrackingError(
                f"the MLflow run {run_id} is being written by process {writer.pid} on"
                f" {writer.host}.\nWait for it, or end that process first."
            )

        def reopen(client: MlflowClient) -> None:
            if earlier.info.lifecycle_stage == "deleted":
                client.restore_run(run_id)
            client.update_run(run_id, status="RUNNING")
            for name, value in _tags({**(tags or {}), **here.tags()}).items():
                client.set_tag(run_id, name, value)
            for name in (ENDED_TAG, ERROR_TAG):
                if name in earlier.data.tags:
                    client.delete_tag(run_id, name)

        store.call(f"going on with the run {run_id}", reopen)
        run = cls(store, run_id, pending, resumed=True)
        run._send_pending(retries=1)
        return run

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Store a config, nested or flat, as parameters with dotted names.

        Names and values are as in an override (`null`, `true`, lists as JSON), credentials
        removed. A value of more than 6000 characters is stored whole in the artifact
        `params/NAME.txt`, and its start with a pointer to that as the parameter. MLflow lets no
        parameter change: in a resumed run the first value stays, and the values of this time go
        to the artifact `config/changed_params.json` and, by name, to the tag
        `flair2.changed_params`.

        Raises:
            TrackingError: The store does not take them. This is called before training.
        """
        flat = flatten(config)
        names = valid_names(flat)
        params: dict[str, str] = {}
        for name, value in flat.items():
            text, valid = scrub_value(name, render(value)), names[name]
            artifact = f"params/{valid.replace('/', '_')}.txt"
            params[valid] = shorten(text, artifact)
            if params[valid] != text:
                self.log_text(text, artifact)
        if self._resumed:
            params = self._without_changed(params)
        self.store.call("storing parameters", lambda c: _send_params(c, self.run_id, params))

    def _without_changed(self, params: dict[str, str]) -> dict[str, str]:
        run = self.store.call("reading parameters", lambda c: c.get_run(self.run_id))
        first = run.data.params
        changed = {
            name: {"first": first[name], "now": value}
            for name, value in params.items()
            if name in first and first[name] != value
        }
        if changed:
            self.log_json(changed, "config/changed_params.json")
            self.set_tags({CHANGED_TAG: ", ".join(changed)})
        return {name: value for name, value in params.items() if name not in first}

    def log_metrics(
        self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None
    ) -> None:
        """Store numbers by name at a step; they are sent together, some seconds later.

        Args:
            metrics: Numbers, also NaN and infinite ones, by name.
            step: The epoch, or the step of the optimizer: whatever the curve is drawn over.
            timestamp: Milliseconds since 1970; now by default.
        """
        now = int(time.time() * 1000) if timestamp is None else timestamp
        self._metrics += [
            (valid_name(name), float(value), now, step) for name, value in metrics.items()
        ]
        waited = time.monotonic() - self._last_sent
        if len(self._metrics) >= _BUFFERED_METRICS or waited >= _BUFFERED_SECONDS:
            self.flush()

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Store a copy of a file under an artifact folder.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The folder does not stay within the run's artifacts.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(file)
        self._send({"kind": "artifact", "file": str(file), "folder": folder and _inside(folder)})

    def log_text(self, text: str, path: str) -> None:
        """Store a text, scrubbed of credentials, as the artifact `path`.

        Raises:
            ValueError: The path does not stay within the run's artifacts.
        """
        self._send({"kind": "text", "text": scrub(text), "path": _inside(path)})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, scrubbed of credentials; one that is there gets the new value."""
        self._send({"kind": "tags", "tags": _tags(tags)})

    def flush(self) -> None:
        """Send the metrics that wait, and whatever could not be sent before."""
        if self._metrics:
            # Taken out of the buffer only when sent or kept: a signal in between loses nothing.
            self._send({"kind": "metrics", "metrics": list(self._metrics)})
            self._metrics.clear()
        self._last_sent = time.monotonic()

    def finish(self, status: str = FINISHED) -> None:
        """Send what waits and close the run: FINISHED, FAILED or KILLED. A second call: nothing.

        Where the store does not answer, this says where the rest is kept.
        """
        if self._finished:
            return
        self._finished = True
        self._retry_at = 0.0  # once more, whatever happened before
        self.flush()
        end = {"kind": "status", "status": status, "end": int(time.time() * 1000)}
        self._send(end, retries=2)
        if self._pending:
            _log.warning(
                "MLflow (%s) still does not take everything: %d records are kept in %s and are "
                "sent when the run %s is resumed.",
                self.store,
                len(self._pending),
                self._pending.folder,
                self.run_id,
            )

    def _send(self, record: Record, retries: int = 0) -> None:
        """Send one record, behind those that wait; keep it if that fails."""
        if time.monotonic() < self._retry_at or not self._send_pending(retries):
            self._pending.keep(record)
            return
        try:
            self._deliver(record, retries)
        except TrackingError as error:
            self._pending.keep(record)
            self._failed(error)

    def _send_pending(self, retries: int) -> bool:
        """Send what waits in the folder, in order; whether nothing waits any more."""
        if not self._pending:
            return True
        try:
            for line, record in self._pending.records():
                self._deliver(record, retries)
                self._pending.mark_sent(line)
        except TrackingError as error:
            self._failed(error)
            return False
        self._pending.clear()
        self._pause = _FIRST_PAUSE
        _log.warning("MLflow (%s) takes data again: all that waited is sent.", self.store)
        self._warned = False
        return True

    def _failed(self, error: TrackingError) -> None:
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s\nThe run goes on; what MLflow does not take is kept in %s and sent later.",
                str(error).splitlines()[0],
                self._pending.folder,
            )

    def _deliver(self, record: Record, retries: int) -> None:
        """Send one record; one that MLflow finds wrong would be so for ever: told and left out."""
        kind = record["kind"]
        send = _SENDERS[kind]
        try:
            self.store.call(f"storing {kind}", lambda c: send(c, self, record), retries=retries)
        except TrackingError as error:
            if getattr(error.__cause__, "error_code", "") != "INVALID_PARAMETER_VALUE":
                raise
            _log.warning("%s", str(error).splitlines()[0])

    def _new_metrics(
        self, client: MlflowClient, metrics: list[tuple[str, float, int, int]]
    ) -> Iterator[tuple[str, float, int, int]]:
        """The metrics that a resumed run does not have yet."""
        for name, value, timestamp, step in metrics:
            if self._resumed:
                if name not in self._known:
                    history = client.get_metric_history(self.run_id, name)
                    self._known[name] = {metric.step: metric.value for metric in history}
                known = self._known[name].get(step)
                same = known is not None and (
                    known == value or (math.isnan(known) and math.isnan(value))
                )
                if same:
                    continue
            yield name, value, timestamp, step


class _Pending:
    """What could not be sent: one JSON record a line, and copies of the files it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = folder / "records.jsonl"
        self._sent = folder / "sent"
        self._count = sum(1 for _ in self.records())

    def __len__(self) -> int:
        return self._count

    def records(self) -> Iterator[tuple[int, Record]]:
        """Line number and record of what is not yet sent, oldest first, without torn lines."""
        if not self._records.is_file():
            return
        sent = int(self._sent.read_text()) if self._sent.is_file() else 0
        for number, line in enumerate(self._records.read_text().split("\n"), start=1):
            if number > sent and line:
                with contextlib.suppress(ValueError):
                    yield number, json.loads(line)

    def keep(self, record: Record) -> None:
        """Add a record; a file that it names is copied, since it may change or vanish."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if record["kind"] == "artifact":
                source = Path(record["file"])
                copy = self.folder / f"file-{time.time_ns()}" / source.name
                copy.parent.mkdir()
                shutil.copyfile(source, copy)
                record = {**record, "file": str(copy)}
            with self._records.open("a") as file:  # a line break in front ends a torn line
                file.write(f"\n{json.dumps(record)}\n")
            self._count += 1
        except OSError as error:  # the disk is full as well: the training is worth more
            _log.warning("%s cannot be kept in %s: %s", record["kind"], self.folder, error.strerror)

    def mark_sent(self, line: int) -> None:
        """Remember that the record of that line, and all before it, are sent."""
        write_text(self._sent, str(line))
        self._count -= 1

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._count = 0


def _inside(path: str) -> str:
    """A relative artifact path in its shortest form."""
    short = posixpath.normpath(path)
    if short.startswith(("/", "..")) or short == ".":
        raise ValueError(f"{path!r} is no path within a run's artifacts")
    return short


def _tags(tags: Mapping[str, object]) -> dict[str, str]:
    """Tags as MLflow takes them: valid names, and texts that say so where they are cut."""
    names = valid_names(tags)
    cut = " … [cut]"
    result = {}
    for name, value in tags.items():
        text, limit = (
            scrub_value(name, render(value)),
            _NOTE_LIMIT if name == ERROR_TAG else _TAG_LIMIT,
        )
        result[names[name]] = text if len(text) <= limit else text[: limit - len(cut)] + cut
    return result


def _chunks(texts: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    """Names and values in portions that one call may hold, in number and in size."""
    chunk: list[tuple[str, str]] = []
    size = 0
    for name, value in texts.items():
        size += len(name) + len(value)
        if chunk and (len(chunk) >= _TEXTS_A_CALL or size > _CHARACTERS_A_CALL):
            yield chunk
            chunk, size = [], len(name) + len(value)
        chunk.append((name, value))
    if chunk:
        yield chunk


def _send_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    for chunk in _chunks(params):
        client.log_batch(
            run_id, params=[Param(name, value) for name, value in chunk], synchronous=True
        )


def _send_metrics(client: MlflowClient, run: TrackedRun, record: Record) -> None:
    from mlflow.entities import Metric

    items = run._new_metrics(client, record["metrics"])
    while chunk := [Metric(*item) for item in islice(items, _METRICS_A_CALL)]:
        client.log_batch(run.run_id, metrics=chunk, synchronous=True)


def _send_tags(client: MlflowClient, run: TrackedRun, record: Record) -> None:
    from mlflow.entities import RunTag

    for chunk in _chunks(record["tags"]):
        client.log_batch(
            run.run_id, tags=[RunTag(name, value) for name, value in chunk], synchronous=True
        )


def _send_artifact(client: MlflowClient, run: TrackedRun, record: Record) -> None:
    client.log_artifact(run.run_id, record["file"], record["folder"] or None)


def _send_text(client: MlflowClient, run: TrackedRun, record: Record) -> None:
    client.log_text(run.run_id, record["text"], record["path"])


def _send_status(client: MlflowClient, run: TrackedRun, record: Record) -> None:
    end_run(client, run.run_id, record["status"], record["end"])


_SENDERS: Final = {
    "metrics": _send_metrics,
    "tags": _send_tags,
    "artifact": _send_artifact,
    "text": _send_text,
    "status": _send_status,
}
