"""One MLflow run, written so that tracking never costs a training.

What is wrong before the training starts is refused (`TrackingError`). What goes wrong later, a
server that went away or a full disk, is reported once and kept in a folder of the run (`outbox`).
"""

from __future__ import annotations

import json
import posixpath
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from flair2_exp.errors import TrackingError
from flair2_exp.projects import format_exception
from flair2_exp.signals import FINISHED, KILLED, PREEMPTED, status_of
from flair2_exp.tracking.outbox import Outbox, deliver_command, send_params, send_tags
from flair2_exp.tracking.params import shorten, valid_name, valid_names
from flair2_exp.tracking.pending import Record
from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.scrub import scrub, scrub_value
from flair2_exp.tracking.store import Store
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import flatten, render

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

    from flair2_exp.tracking.system import SystemMetrics

_TAG_LIMIT: Final = 8000
"""MLflow's limit for a tag's value (mlflow.utils.validation)."""
_NOTE_LIMIT: Final = 4000
"""Characters of an error that MLflow's page shows well."""
_DIGEST_LIMIT: Final = 36
"""MLflow's limit for a data set's digest."""
_ERROR: Final = "error"
"""The artifact folder of what a run failed with."""
_CUT: Final = " … [cut]"
_BUFFERED_METRICS: Final = 500
_BUFFERED_SECONDS: Final = 10.0
"""Metrics wait for this many or this long; one call takes 10 to 20 ms whatever it holds."""


class Run:
    """What an experiment reports about itself; a context manager that ends the run as it ended.

    `Run()` keeps nothing and imports nothing: it serves where tracking is off. `open_run` makes one
    that is kept in MLflow.

    Attributes:
        run_id: MLflow's id of the run; empty where nothing is kept.
        experiment_id: MLflow's id of its experiment; empty where nothing is kept.
        store: Where the run is kept; None where nothing is kept.
    """

    run_id: str = ""
    experiment_id: str = ""
    store: Store | None = None

    def __init__(self, outbox: Outbox | None = None, experiment_id: str = "") -> None:
        self._outbox = outbox
        self.experiment_id = experiment_id
        if outbox is not None:
            self.run_id, self.store = outbox.run_id, outbox.store
        self._metrics: list[tuple[str, float, int, int]] = []
        self._last_sent = time.monotonic()
        self._finished = False
        self._system: SystemMetrics | None = None

    def log_params(
        self, params: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> None:
        """Store values, nested or flat, as parameters with dotted names.

        Names and values are as in an override (`null`, `true`, lists as JSON), credentials
        removed. A value of more than 6000 characters is stored whole in the artifact
        `params/NAME.txt`, and its start with a pointer to that as the parameter. MLflow lets no
        parameter change: in a resumed run the first value stays, and the values of this time go
        to the artifact `config/changed_params.json` and, by name, to the tag
        `flair2.changed_params`.

        Args:
            params: What is stored.
            config: All values of this time, of which `params` are some: a parameter of a resumed
                run that is not among them any more has changed as well.

        Raises:
            TrackingError: The store does not take them. This is called before training.
        """
        if self._outbox is None:
            return
        texts, whole = _as_params(params), _as_params(config or {})
        for text, artifact in texts.values():
            if shorten(text, artifact) != text:
                self.log_text(text, artifact)
        now = {name: shorten(*each) for name, each in (whole | texts).items()}
        stored = {name: now[name] for name in texts}
        store, run_id = self._outbox.store, self.run_id
        if self._outbox.resumed:
            run = store.call("reading parameters", lambda client: client.get_run(run_id))
            self._note_changed(now, run.data.params)
            stored = {name: stored[name] for name in stored if name not in run.data.params}
        store.call("storing parameters", lambda client: send_params(client, run_id, stored))

    def _note_changed(self, now: Mapping[str, str], first: Mapping[str, str]) -> None:
        """Store which of a resumed run's parameters have other values now."""
        changed = {
            name: {"first": first[name], "now": now[name]}
            for name in now
            if first.get(name, now[name]) != now[name]
        }
        if changed:
            self.log_json(changed, "config/changed_params.json")
            self.set_tags({Tag.CHANGED_PARAMS: ", ".join(changed)})

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Store which data the run reads, as MLflow's dataset input; once, however often given.

        Args:
            name: The data set's.
            digest: Of its content; MLflow keeps the first 36 characters.
            source: Where it lies.
            profile: Plain values that describe it.
        """
        dataset = {"name": name, "digest": digest[:_DIGEST_LIMIT], "source": scrub(source)}
        self._send({"kind": "dataset", **dataset, "profile": dict(profile), "context": "training"})

    def watch_system(self) -> None:
        """Store from now on, every ten seconds, how busy processor, memory, disk and GPUs are.

        Raises:
            TrackingError: The store does not answer.
        """
        if self._outbox is not None:
            from flair2_exp.tracking.system import SystemMetrics

            store = self._outbox.store
            run = store.call("reading the run", lambda client: client.get_run(self.run_id))
            self._system = SystemMetrics(run.info.start_time)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Store numbers by name at a step; they are sent together, some seconds later.

        Args:
            metrics: Numbers, also NaN and infinite ones, by name.
            step: The epoch, or the step of the optimizer: whatever the curve is drawn over.
        """
        now = int(time.time() * 1000)
        self._metrics += [(valid_name(name), float(metrics[name]), now, step) for name in metrics]
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
        if self._outbox is not None and not file.is_file():
            raise FileNotFoundError(file)
        self._send({"kind": "artifact", "file": str(file), "folder": folder and _inside(folder)})

    def log_text(self, text: str, path: str) -> None:
        """Store a text, scrubbed of credentials, as the artifact `path`.

        Raises:
            ValueError: The path does not stay within the run's artifacts.
        """
        self._send({"kind": "text", "text": scrub(text), "path": _inside(path)})

    def log_json(self, value: object, path: str) -> None:
        """Store plain values as the JSON artifact `path`."""
        self.log_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", path)

    def log_files(self, files: Mapping[str, Any]) -> None:
        """Store artifacts by path: a text as it is, anything else as JSON."""
        for path, content in files.items():
            log = self.log_text if isinstance(content, str) else self.log_json
            log(content, path)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, scrubbed of credentials; a tag that the run has gets the new value."""
        self._send({"kind": "tags", "tags": valid_tags(tags)})

    def describe(self, markdown: str) -> None:
        """Set the description that MLflow shows on the run's page."""
        self.set_tags({Tag.DESCRIPTION: markdown})

    def flush(self) -> None:
        """Send the metrics that wait, and whatever could not be sent before."""
        if self._system is not None:
            self._metrics += self._system.taken()
        if self._metrics:
            # Taken out of the buffer only when sent or kept: a signal in between loses nothing.
            self._send({"kind": "metrics", "metrics": list(self._metrics)})
            self._metrics.clear()
        self._last_sent = time.monotonic()

    def _send(self, record: Record) -> None:
        if self._outbox is not None:
            self._outbox.send(record)

    def finish(self, status: str = FINISHED, end: int = 0) -> None:
        """Send what waits and close the run: FINISHED, FAILED or KILLED; only the first call.

        Where the store does not answer it is tried for `Store.delivery_seconds`, but for a run that
        a signal ends: whoever sent that does not wait. Then a warning says where the rest is kept.

        Args:
            status: How the run ended.
            end: When it ended, in milliseconds since 1970; 0: now.
        """
        if self._outbox is None or self._finished:
            return
        self._finished = True
        self._outbox.retry_now()
        self._stop_watching()
        self.flush()
        if status == FINISHED and self._outbox.resumed:  # what an earlier attempt failed with
            self._outbox.send({"kind": "removal", "path": _ERROR})
        ended = {"kind": "status", "status": status, "end": end or int(time.time() * 1000)}
        self._outbox.send(ended, retries=2)
        try:
            if status != KILLED:
                self._outbox.insist(self._outbox.store.delivery_seconds)
        finally:
            self._outbox.warn_of_pending()

    def _stop_watching(self) -> None:
        if self._system is not None:
            self._system.stop()

    def release(self) -> None:
        """Close the run as nobody's, for whichever process resumes it.

        A run that many processes share belongs to none of them: that one ends, or dies, does not
        end the run; and one that is never resumed does not stay RUNNING for ever.

        Raises:
            TrackingError: The store does not take it.
        """
        if self._outbox is not None:
            self._forget_writer()
            self.finish()

    def _forget_writer(self) -> None:
        if self._outbox is not None:
            writer = WriterProcess.this().tags()
            release = partial(_delete_tags, run_id=self.run_id, names=writer)
            self._outbox.store.call("releasing the run", release)

    def suspend(self) -> None:
        """Send what waits and leave the run RUNNING, as nobody's: its job is queued again.

        Where the store does not answer, the run stays this process's.
        """
        if self._outbox is None or self._finished:
            return
        self.set_tags({Tag.PREEMPTED: True})
        self._stop_watching()
        self.flush()
        self._finished = True
        try:
            self._forget_writer()
        except TrackingError:
            self._outbox.warn_of_pending()

    @property
    def waiting(self) -> int:
        """The number of records that could not be sent."""
        return 0 if self._outbox is None else len(self._outbox)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        status = status_of(exception)
        if status == PREEMPTED:
            self.suspend()
            return
        if exception is not None and not (isinstance(exception, SystemExit) and not exception.code):
            self.set_tags({Tag.ERROR: f"{type(exception).__name__}: {exception}"})
            self.log_text(format_exception(exception), f"{_ERROR}/traceback.txt")
        self.finish(status)


def open_run(
    store: Store | None,
    experiment: str,
    name: str,
    pending: Path,
    *,
    tags: Mapping[str, object],
    run_id: str | None = None,
    lookup: Iterable[str] = (),
    take_over: bool = False,
) -> Run:
    """Resume the run of that id, or one that was left without its id noted, or make a new one.

    The run is RUNNING afterwards, and names this process as its writer. What an earlier process
    could not send is sent; a metric that the run already has with the same step and value is not
    stored twice. Runs that killed processes of this machine have left open are closed first.

    Args:
        store: An open store; None, as with `tracking=off`, gives a `Run` that keeps nothing.
        experiment: The name of MLflow's experiment, made where it is missing.
        name: What a new run is called on MLflow's pages.
        pending: A folder of this run, the same whenever it is resumed; made only if something
            cannot be sent.
        tags: The run's tags, set anew on one that is resumed; `Tag.PARENT` is the run under which
            MLflow shows it.
        run_id: The run to resume, where its id is noted.
        lookup: Names out of `tags` that together no other run has. A process that was killed
            between making the run and noting its id has left one behind: where `run_id` is empty,
            the newest KILLED run with these tags is resumed.
        take_over: The caller holds the run's folder (`locking.locked`), so that nobody else can be
            writing: do not ask. Else a run whose process was killed on another machine could never
            be resumed, since nobody here can know that it has ended.

    Raises:
        TrackingError: The store does not answer, has no such run, or another process may be
            writing it.
    """
    if store is None:
        return Run()
    experiment_id = store.ensure_experiment(experiment)
    store.close_dead_runs()
    if not run_id and (left := {key: tags[key] for key in lookup}):
        run_id = store.find_run(experiment_id, valid_tags(left), status=KILLED)
    if not run_id:
        run_id = new_run(store, experiment_id, name, tags)
        return Run(Outbox(store, run_id, pending, resumed=False), experiment_id)
    earlier = store.find(run_id)
    if earlier is None:
        raise TrackingError(unknown_run(store, run_id, pending.parent))
    _require_ended(store, earlier, take_over=take_over)
    if earlier.info.lifecycle_stage == "deleted":
        store.call(f"restoring the run {run_id}", lambda client: client.restore_run(run_id))
    outbox = Outbox(store, run_id, pending, resumed=True)
    outbox.send_pending(retries=1)  # before the run is RUNNING: it may hold how it ended
    texts = valid_tags({**tags, **WriterProcess.this().tags()})
    store.call(f"resuming the run {run_id}", lambda client: _reopen(client, run_id, texts))
    return Run(outbox, earlier.info.experiment_id)


def unknown_run(store: Store, run_id: str, folder: Path) -> str:
    """Return what to say of a run that a folder names and the store does not have."""
    return (
        f"MLflow ({store}) has no run {run_id}, as {folder} names it: the store was lost or "
        "emptied, or is another one.\nMake the run again from its folder: "
        f"{deliver_command(folder, store.address)}"
    )


def new_run(
    store: Store, experiment_id: str, name: str, tags: Mapping[str, object], start: int = 0
) -> str:
    """Make a run that this process writes; return its id.

    Args:
        store: Where to make it.
        experiment_id: MLflow's id of its experiment.
        name: What it is called on MLflow's pages.
        tags: Its tags.
        start: When it began, in milliseconds since 1970; 0: now.

    Raises:
        TrackingError: The store does not take it.
    """
    texts = valid_tags({**tags, **WriterProcess.this().tags()})
    run = store.call(
        "making the run",
        lambda client: client.create_run(experiment_id, start or None, texts, name),
    )
    return str(run.info.run_id)


def _require_ended(store: Store, earlier: MlflowRun, *, take_over: bool) -> None:
    """Refuse a run that another process may be writing."""
    run_id, writer = earlier.info.run_id, WriterProcess.from_tags(earlier.data.tags)
    if (
        not take_over
        and earlier.info.status == "RUNNING"
        and writer not in (None, WriterProcess.this())
        and not writer.has_ended(shared_store=not store.is_local)
    ):
        raise TrackingError(
            f"the MLflow run {run_id} is being written by process {writer.process.pid} on"
            f" {writer.process.host}.\nWait for it, or end that process first."
        )


def _reopen(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set a run to RUNNING, with these tags and without those of how it ended before."""
    client.update_run(run_id, status="RUNNING")
    send_tags(client, run_id, tags)
    earlier = client.get_run(run_id).data.tags
    _delete_tags(client, run_id, {Tag.ENDED, Tag.ERROR, Tag.PREEMPTED} & earlier.keys())


def _as_params(values: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return values by the names that MLflow takes: as text, and where a long one is kept whole."""
    flat = flatten(values)
    names = valid_names(flat)
    return {
        names[name]: (
            scrub_value(name, render(value)),
            f"params/{names[name].replace('/', '_')}.txt",
        )
        for name, value in flat.items()
    }


def _inside(path: str) -> str:
    """Return a relative artifact path in its shortest form."""
    short = posixpath.normpath(path)
    if short.startswith(("/", "..")) or short == ".":
        raise ValueError(f"{path!r} is not a path within a run's artifacts")
    return short


def valid_tags(tags: Mapping[str, object]) -> dict[str, str]:
    """Return tags as MLflow takes them: valid names, texts that say where they are cut."""
    names = valid_names(tags)
    valid = {}
    for name, value in tags.items():
        text = scrub_value(name, render(value))
        limit = _NOTE_LIMIT if name == Tag.ERROR else _TAG_LIMIT
        valid[names[name]] = text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT
    return valid


def _delete_tags(client: MlflowClient, run_id: str, names: Iterable[str]) -> None:
    for name in names:
        client.delete_tag(run_id, name)
