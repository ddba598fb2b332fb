"""Where MLflow runs are kept: in a local sqlite database, or on a server.

MLflow is used through its client with an explicit address, never through its global state, so that
neither `MLFLOW_RUN_ID` nor another library's tracking can divert a run. It is imported when a store
is opened, not before.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import re
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flair2_exp.errors import TrackingError
from flair2_exp.files import nearest_existing
from flair2_exp.locking import file_lock
from flair2_exp.optuna_sweeper import sqlite
from flair2_exp.signals import KILLED
from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.relocation import ARTIFACTS, artifact_here, relocate, root_of
from flair2_exp.tracking.scrub import scrub
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient

T = TypeVar("T")
Item = TypeVar("Item")
Recorded = Callable[[str, Mapping[str, str]], str]
"""Returns how a run ended, by its id and tags: FINISHED, FAILED or KILLED; "" where unknown."""

_DATABASE: Final = "mlflow.db"
_KIND: Final = {str(Tag.EXPERIMENT_KIND): "custom_model_development"}
"""Makes MLflow's pages show a model's training rather than the tracing of a language model."""
_COLUMNS: Final = frozenset({"experiment_id", "artifact_location", "lifecycle_stage"})
"""What the table of MLflow's experiments has, in all versions since 1.0."""
_BUSY_SECONDS: Final = 20.0
"""As long as MLflow's own connections wait for a lock of the database."""
_REQUESTS: Final = 8
"""Answers of a server that are waited for at a time; its default is four processes."""


def local_uri(folder: str | Path) -> str:
    """Return the address of the sqlite store in a folder: `sqlite:////absolute/folder/mlflow.db`."""
    return f"sqlite:///{Path(folder).absolute() / _DATABASE}"


def open_store(
    uri: str,
    *,
    timeout: float = 8.0,
    delivery_seconds: float = 0.0,
    recorded: Recorded | None = None,
) -> Store:
    """Open a store, make a local one if it is new, and make sure that it takes runs.

    Safe when several processes open the same new store at once. A local store that has moved, or is
    a copy, is told so (`relocation`): artifacts are looked for and kept where it lies now.

    Args:
        uri: `sqlite:////absolute/path/mlflow.db` (its artifacts lie beside it, in `artifacts`) or
            the `http(s)://` address of an MLflow server.
        timeout: Seconds in which a server must answer.
        delivery_seconds: How long a run tries, at its end, to send what the store did not take.
        recorded: Tells how a run ended where its own process could not.

    Raises:
        TrackingError: An address of another kind, a folder or database that cannot be written, a
            server that does not answer in time or is not MLflow's.
    """
    database = require_usable(uri, timeout=timeout)
    if database is None:
        store = Store(uri, folder=None, timeout=timeout)
    else:
        store = _open_local(database, timeout)
    store.delivery_seconds, store.recorded = delivery_seconds, recorded
    return store


def require_usable(uri: str, *, timeout: float = 8.0) -> Path | None:
    """Refuse a store that does not answer, cannot be written or is something else; make nothing.

    Returns:
        The database of a local store; None for a server.

    Raises:
        TrackingError: As by `open_store`.
    """
    scheme = uri.partition(":")[0].lower() if "://" in uri else ""
    if scheme in ("http", "https"):
        _check_server(uri, timeout)
        return None
    if scheme != "sqlite":
        fix = "sqlite:////absolute/path/mlflow.db or http://127.0.0.1:5000"
        raise TrackingError(
            f"tracking.uri={scrub(uri)} is neither a sqlite database nor a server"
            f" (MLflow keeps no runs in plain folders any more).\nGive an address like {fix}."
        )
    database = database_path(uri)
    try:
        fault = sqlite.foreign(database, "experiments", _COLUMNS)
    except OSError as error:
        raise _unwritable(database.parent, error) from error
    if fault:
        raise TrackingError(
            f"the MLflow store {database} is {fault}, and stays as it is.\nGive another folder "
            "with paths.mlflow=…, or another file with tracking.uri=sqlite:////…/mlflow.db."
        )
    nearest = nearest_existing(database.parent)
    if not nearest.is_dir() or nearest.parts[:2] == ("/", "proc"):
        raise _unwritable(database.parent, NotADirectoryError(errno.ENOTDIR, "Not a directory"))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _unwritable(database.parent, PermissionError(errno.EACCES, "Permission denied"))
    return database


def _unwritable(folder: Path, error: OSError | sqlite3.Error) -> TrackingError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return TrackingError(
        f"the MLflow store {folder} cannot be written ({reason})."
        "\nGive another folder with paths.mlflow=…, or turn tracking off with tracking=off."
    )


def database_path(uri: str) -> Path:
    """Return the absolute path of the database that `sqlite:///PATH` names.

    Raises:
        TrackingError: It names none.
    """
    path = sqlite.path_of(uri)
    if path is None:
        raise TrackingError(
            f"tracking.uri={scrub(uri)} names no database file that MLflow can open.\nGive an "
            "address like sqlite:////absolute/path/mlflow.db (four slashes)."
        )
    return path


def local_store(database: Path, timeout: float) -> Store:
    """Return the store that is in a database, without looking at it.

    Raises:
        TrackingError: It has none, in the version of SQLAlchemy that is installed.
    """
    try:
        uri = sqlite.address(f"{sqlite.PREFIX}{database}")
    except ValueError:
        raise TrackingError(
            f"the MLflow store {database} has a name that SQLAlchemy cannot address.\nGive another "
            "folder with paths.mlflow=…, without ?, or install sqlalchemy>=2.1."
        ) from None
    if "%" in uri:  # of what it takes for a path MLflow makes the folder, escapes and all
        uri = uri.replace("sqlite:", "sqlite+pysqlite:")
    store = Store(uri, folder=database.parent, timeout=timeout)
    store.address = f"{sqlite.PREFIX}{database}"
    return store


def _open_local(database: Path, timeout: float) -> Store:
    folder = database.parent
    try:
        (folder / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        store = local_store(database, timeout)
        with store.locked():
            if not database.exists() or not database.stat().st_size:
                _make_database(database, timeout)
            if not os.access(database, os.W_OK):
                raise PermissionError(13, "Permission denied")
            # Before MLflow, which tries for minutes to open what is not a database.
            with contextlib.closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection:
                # Readers (the UI) and a writer do not wait for each other; kept in the file.
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("BEGIN IMMEDIATE")  # fails where nothing can be written
                relocate(connection, folder)
                connection.commit()
            store.call("opening", lambda client: client.search_experiments(max_results=1))
    except (OSError, sqlite3.Error) as error:
        raise _unwritable(folder, error) from error
    return store


def _make_database(database: Path, timeout: float) -> None:
    """Let MLflow make its tables in a file beside, and move that into place when it is whole.

    They come of dozens of migrations, which are not one transaction: a process killed in one
    would leave a database that none after it can open.
    """
    fresh = database.with_name(f"{database.name}.making")
    for left in database.parent.glob(f"{fresh.name}*"):
        left.unlink()
    store = local_store(fresh, timeout)
    store.call("making its database", lambda client: client.search_experiments(max_results=1))
    fresh.replace(database)


def _check_server(uri: str, timeout: float) -> None:
    """Ask a server one small question, without MLflow's retries and without importing it.

    In a thread of its own, since looking up a host's name knows no time limit.
    """
    answers: list[str] = []
    thread = threading.Thread(
        target=lambda: answers.append(_server_fault(uri, timeout)), daemon=True, name="mlflow-check"
    )
    thread.start()
    thread.join(timeout)
    fault = answers[0] if answers else f"no answer within {timeout:g} s"
    if fault:
        raise TrackingError(
            f"the MLflow server {scrub(uri)} does not answer as expected: {fault}.\nStart it "
            "(mlflow server), correct tracking.uri=…, or keep runs locally (tracking=local) or not "
            "at all (tracking=off)."
        )


def _server_fault(uri: str, timeout: float) -> str:
    """Return in words what is wrong with a server's answer; "" where it is an MLflow server's."""
    import requests

    def option(name: str) -> str:
        return os.environ.get(f"MLFLOW_TRACKING_{name}", "")

    token, user, password = option("TOKEN"), option("USERNAME"), option("PASSWORD")
    insecure = option("INSECURE_TLS").lower() in ("true", "1")
    try:
        response = requests.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
            params={"max_results": "1"},
            headers={"Authorization": f"Bearer {token}"} if token else {},
            auth=(user, password) if user and password else None,
            timeout=timeout,
            verify=option("SERVER_CERT_PATH") or not insecure,
            cert=option("CLIENT_CERT_PATH") or None,
        )
    except requests.exceptions.Timeout:
        return f"no answer within {timeout:g} s"
    except requests.exceptions.SSLError:
        return "its certificate is not accepted"
    except requests.exceptions.ConnectionError as error:
        text = str(error).lower()
        if "refused" in text:
            return "connection refused"
        return "no such host" if "resolve" in text else "the connection breaks"
    except (OSError, ValueError) as error:  # all of requests' errors, and an unreadable certificate
        return _reason(error)
    status = response.status_code
    is_json = "json" in response.headers.get("Content-Type", "")
    if status in (401, 403) or (response.ok and is_json):  # rights show when the run is made
        return ""
    return f"status {status}, " + ("an error" if status >= 500 else "not an MLflow server's")


@contextmanager
def _patience(timeout: float, retries: int) -> Iterator[None]:
    """Bound how long MLflow's client waits for a server, which by itself is minutes.

    It reads these variables at each request; what the user has set stays.
    """
    limits = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, math.ceil(timeout))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    }
    added = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep MLflow from reporting at length what is reported here in one line."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("mlflow", "alembic"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Return the first line of an error, scrubbed and at most 300 characters."""
    lines = [line.strip() for line in scrub(str(error)).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("(raised as a result of")] or lines
    return (lines[0] if lines else type(error).__name__)[:300]


class Store:
    """A place where runs are kept; made by `open_store`.

    Attributes:
        uri: The address as MLflow takes it, with credentials if it has any: not for showing.
        address: As users give it, without credentials.
        folder: Of a local store; None for a server.
        timeout: Seconds in which a server must answer.
        delivery_seconds: How long a run tries, at its end, to send what the store did not take.
        recorded: Tells how a run ended where its own process could not; None: nothing does.
    """

    def __init__(self, uri: str, *, folder: Path | None, timeout: float) -> None:
        self.uri = uri
        self.address = scrub(uri)
        self.folder = folder
        self.timeout = timeout
        self.delivery_seconds = 0.0
        self.recorded: Recorded | None = None
        self._client: MlflowClient | None = None
        self._roots: dict[str, Path | None] = {}

    def __str__(self) -> str:
        return scrub(self.uri if self.folder is None else str(self.folder))

    @property
    def is_local(self) -> bool:
        """Whether runs go to a database on this machine."""
        return self.folder is not None

    def locked(self) -> AbstractContextManager[object]:
        """Admit one process at a time; a server needs no lock of ours.

        Raises:
            OSError: The lock's file cannot be made.
        """
        return nullcontext() if self.folder is None else file_lock(self.folder / ".mlflow.lock")

    def call(self, what: str, action: Callable[[MlflowClient], T], *, retries: int = 1) -> T:
        """Do something with MLflow's client, in bounded time and with errors in one line.

        Args:
            what: What is being done, for the error.
            action: Called with the client.
            retries: How often MLflow's client may repeat a request to a server.

        Raises:
            TrackingError: Whatever went wrong.
        """
        try:
            # Usage statistics over the network are not for an experiment to send.
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            from mlflow.tracking import MlflowClient  # sets up its logging: before the silence

            with _patience(self.timeout, retries), _silence():
                if self._client is None:
                    self._client = MlflowClient(tracking_uri=self.uri)
                return action(self._client)
        except Exception as error:  # databases and artifact stores have errors of their own kinds
            raise self._failure(what, error) from error

    def _failure(self, what: str, error: Exception) -> TrackingError:
        if isinstance(error, TrackingError):
            return error
        return TrackingError(
            f"MLflow ({self}) failed at {what}: {_reason(error)}.\nCheck that the store can be "
            "written (free space, credentials), or run with tracking=off."
        )

    def call_each(
        self, what: str, action: Callable[[MlflowClient, Item], T], items: Sequence[Item]
    ) -> list[T]:
        """Do something with MLflow's client for each of many: a server answers several at a time.

        Args:
            what: What is being done, for the error.
            action: Called with the client and an item; with a server, in threads.
            items: What it is done for.

        Raises:
            TrackingError: Whatever went wrong at the first item that failed.
        """

        def every(client: MlflowClient) -> list[T]:
            if self.is_local:
                return [action(client, item) for item in items]
            with ThreadPoolExecutor(_REQUESTS, "mlflow") as pool:
                return list(pool.map(lambda item: action(client, item), items))

        return self.call(what, every)

    def ensure_experiment(self, name: str) -> str:
        """Return the id of the experiment of that name; make it if it is new.

        Several processes may do so at once. A deleted experiment of that name is restored.

        Raises:
            TrackingError: The store does not take it.
        """
        location, tags = None, dict(_KIND)
        if self.folder is not None:
            part = re.sub(r"[^\w\-.]+", "_", name).strip(".") or "experiment"
            location = (self.folder / ARTIFACTS / part).as_uri()
            tags[Tag.FOLDER] = str(self.folder)

        def ensure(client: MlflowClient) -> str:
            from mlflow.exceptions import MlflowException

            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                try:
                    return str(client.create_experiment(name, location, tags=tags))
                except MlflowException:  # another process was faster (servers have no lock here)
                    experiment = client.get_experiment_by_name(name)
                    if experiment is None:
                        raise
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)

        with self.locked():
            return self.call(f"making the experiment {name!r}", ensure)

    def find(self, run_id: str) -> MlflowRun | None:
        """Return the run of that id, also a deleted one; None where the store has none.

        Raises:
            TrackingError: The store does not answer.
        """
        try:
            return self.call(f"looking for the run {run_id}", lambda client: client.get_run(run_id))
        except TrackingError as error:
            if getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    @contextmanager
    def artifact(self, client: MlflowClient, run: MlflowRun, path: str) -> Iterator[Path]:
        """Yield an artifact of a run as a file: in a local store itself, else a copy for a while.

        Raises:
            TrackingError: There is none, or the store does not answer.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                file = self._local_artifact(client, run, path) or self._download(run, path, folder)
            except Exception as error:
                raise self._failure(f"reading the artifact {path}", error) from error
            yield file

    def _download(self, run: MlflowRun, path: str, folder: str) -> Path:
        """Return a copy of an artifact.

        The client asks a server six times for an artifact of a run, and twice for one by its place.
        """
        from mlflow.artifacts import download_artifacts

        place = f"{run.info.artifact_uri}/{path}"
        return Path(download_artifacts(artifact_uri=place, dst_path=folder, tracking_uri=self.uri))

    def _local_artifact(self, client: MlflowClient, run: MlflowRun, path: str) -> Path | None:
        """Return an artifact's file in a local store, where it lies now; None where it does not."""
        here = self._local_artifacts(client, run)
        return here / path if here is not None and (here / path).is_file() else None

    def _local_artifacts(self, client: MlflowClient, run: MlflowRun) -> Path | None:
        """Return the folder of a run's artifacts in a local store; None where that is elsewhere."""
        if self.folder is None:
            return None
        number = run.info.experiment_id
        if number not in self._roots:
            experiment = client.get_experiment(number)
            noted = experiment.tags.get(Tag.FOLDER, "")
            self._roots[number] = root_of(experiment.artifact_location, noted, self.folder)
        return artifact_here(run.info.artifact_uri, self._roots[number], self.folder)

    def remove_artifacts(self, client: MlflowClient, run_id: str, folder: str) -> None:
        """Remove an artifact folder of a run; nothing where there is none."""
        run = client.get_run(run_id)
        here = self._local_artifacts(client, run)
        if here is not None:
            shutil.rmtree(here / folder, ignore_errors=True)
        elif client.list_artifacts(run_id, folder):
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            place: Any = get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri)
            place.delete_artifacts(folder)

    def find_run(
        self, experiment_id: str, tags: Mapping[str, str], *, status: str | None = None
    ) -> str | None:
        """Return the id of the newest run with all these tags, and this status; None without one.

        Raises:
            TrackingError: The store does not answer.
        """
        runs = self.call(
            "looking for a run", lambda client: search_runs(client, tags, [experiment_id], status)
        )
        return runs[-1].info.run_id if runs else None

    def close_dead_runs(self) -> list[str]:
        """Set runs to KILLED that a process of this machine left RUNNING when it was killed.

        A run that has ended, as its folder says, gets the status that it ended with: only the store
        had not taken it. The end of a run is the time of its last metric; the tag `flair2.ended`
        says why. Runs of other machines, of other containers and of living processes are left
        alone.

        Returns:
            The ids of the runs closed.

        Raises:
            TrackingError: The store does not answer.
        """
        return self.call("closing the runs of killed processes", self._close_dead_runs)

    def _close_dead_runs(self, client: MlflowClient) -> list[str]:
        from mlflow.exceptions import MlflowException

        host = WriterProcess.this().process.host
        closed: list[str] = []
        for open_run in search_runs(client, {Tag.HOST: host}, status="RUNNING"):
            writer = WriterProcess.from_tags(open_run.data.tags)
            if writer is None or not writer.has_ended(shared_store=not self.is_local):
                continue
            run_id = open_run.info.run_id
            run = client.get_run(run_id)  # it may have ended as it should since it was listed
            if run.info.status != "RUNNING" or WriterProcess.from_tags(run.data.tags) != writer:
                continue
            status = self.recorded(run_id, run.data.tags) if self.recorded else ""
            note = f"process {writer.process.pid} was killed and left the run open"
            if status:
                note = f"{status} by its folder: process {writer.process.pid} could not send it"
            try:
                client.set_tag(run_id, Tag.ENDED, note)
                end_run(client, run_id, status or KILLED, _last_sign(client, run))
            except MlflowException:
                # Several processes that start at once all find it; of two that write the same tag
                # in the same moment the database refuses one. The other closes the run.
                continue
            closed.append(run_id)
        return closed


def end_run(client: MlflowClient, run_id: str, status: str, end_time: int) -> None:
    """Close a run; `end_time` in milliseconds since 1970."""
    # MLflow then prints the server's address, with the password if it holds one.
    with contextlib.redirect_stdout(io.StringIO()):
        client.set_terminated(run_id, status, end_time=end_time)


def _last_sign(client: MlflowClient, run: MlflowRun) -> int:
    """Return when a run last wrote, in milliseconds: its start, or a metric's last value."""
    times: list[int] = [run.info.start_time]
    for name in sorted(run.data.metrics)[:3]:  # all metrics of an epoch are written together
        times += [metric.timestamp for metric in client.get_metric_history(run.info.run_id, name)]
    return max(times)


def search_runs(
    client: MlflowClient,
    tags: Mapping[str, str],
    experiments: Sequence[str] = (),
    status: str | None = None,
) -> list[MlflowRun]:
    """Return all runs with these tags, oldest first: of all experiments, or of those given."""
    conditions = [f"attributes.status = '{status}'"] if status else []
    for name, value in tags.items():
        # MLflow's filters know no escape: a value with both kinds of quotes is compared here alone.
        quote = '"' if "'" in value else "'"
        conditions += [] if quote in value else [f"tags.`{name}` = {quote}{value}{quote}"]
    among = experiments or [each.experiment_id for each in client.search_experiments()]
    runs: list[MlflowRun] = []
    page = None
    while page is None or page.token:
        page = client.search_runs(
            list(among),
            " and ".join(conditions),
            max_results=500,  # which a server answers well within the time that it has
            order_by=["attributes.start_time ASC"],
            page_token=page.token if page else None,
        )
        runs += [run for run in page if tags.items() <= run.data.tags.items()]
    return runs
