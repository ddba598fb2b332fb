"""Gather runs for a report: from MLflow, or straight from run folders.

A run brings its confusion counts by area, so that a report never reads images again. What cannot be
used (failed, still running, without counts, damaged) is not dropped: it becomes an `AbsentRun` with
its reason, and the report shows it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import math
import os
import re
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from flair2_exp.config.identity import decides
from flair2_exp.errors import ConfigError, DataError, TrackingError
from flair2_exp.report.statistics import Integers, sum_by_area
from flair2_exp.run import record as run_state
from flair2_exp.run.results import CONFUSION, HISTORY, METRICS
from flair2_exp.tracking.params import flatten, render
from flair2_exp.tracking.store import open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

CURVES: Final[tuple[str, ...]] = ("val/miou", "val/loss", "train/loss")
"""Metrics whose course over the epochs is drawn."""

TELLING: Final[tuple[str, ...]] = (
    "model.name", "quirk", "s2_preproc.name", "aug.name", "metadata.name", "loss.name",
)  # fmt: skip
"""Options that name a row best, where several tell rows apart equally well."""

_SEED_FOLDER: Final = re.compile(r"seed=(\d+)")


class UnfinishedError(DataError):
    """A run that did not finish, by its own account."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(f"{state}: {reason}")
        self.state, self.reason = state, reason


@dataclass(frozen=True)
class Counts:
    """Confusion counts of a run's test set.

    Attributes:
        areas: (A,) names, sorted.
        confusion: (A, C, C) int64 pixels, rows truth, columns prediction.
        classes: C names.
        patches: Number of test patches.
        test_set: Hash of the patches' names and of their true pixels of the scored classes: equal
            for runs that were tested on the same patches with the same labels.
    """

    areas: tuple[str, ...]
    confusion: Integers
    classes: tuple[str, ...]
    patches: int
    test_set: str


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        row: The leaderboard row it belongs to.
        seed: Its seed.
        counts: What it counted on the test set.
        setting: What must agree before two runs may be compared: dataset, fingerprint, split,
            other_pixels. An empty value means that it was not recorded.
        metrics: Last values by name, as `test/miou`.
        settings: The whole config, flat, values as text.
        curves: By metric, the epochs (from 1) and values of validation or training.
        source: Folder or MLflow run id, for messages.
        identity: `flair2.identity`, empty where not recorded.
    """

    row: str
    seed: int
    counts: Counts
    setting: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    source: str = ""
    identity: str = ""


@dataclass(frozen=True)
class AbsentRun:
    """A run that a row should have and that cannot be scored."""

    row: str
    seed: int
    state: str
    """`failed`, `missing`, `running`, `killed`, `unfinished`, `damaged`, ..."""
    reason: str = ""


@dataclass(frozen=True)
class Collected:
    """What was found, in the order in which it was found."""

    runs: tuple[Run, ...]
    absent: tuple[AbsentRun, ...]


def read_counts(path: Path) -> Counts:
    """Read `confusion_per_patch.npz` and sum it by area.

    Args:
        path: The file: `patch_ids` (N,), `areas` (N,), `confusion` (N, C, C), `classes` (C,).

    Raises:
        DataError: The file is missing, damaged, incomplete or inconsistent.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = ("patch_ids", "areas", "confusion", "classes")
            patch_ids, areas, confusion, classes = (stored[name] for name in names)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: test the run again (train=false)") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged ({error}): test the run again (train=false)") from None
    count = len(classes)
    problem = _problem(patch_ids, areas, confusion, count)
    if problem:
        raise DataError(f"{path} is inconsistent ({problem}): test the run again (train=false)")
    by_area, summed = sum_by_area(areas, confusion)
    return Counts(
        areas=tuple(str(name) for name in by_area),
        confusion=summed,
        classes=tuple(str(name) for name in classes),
        patches=len(patch_ids),
        test_set=_test_set(patch_ids, confusion),
    )


def _problem(
    patch_ids: NDArray[Any], areas: NDArray[Any], confusion: NDArray[Any], classes: int
) -> str:
    if confusion.shape != (len(patch_ids), classes, classes) or len(areas) != len(patch_ids):
        return (
            f"{len(patch_ids)} patches, {len(areas)} areas and {classes} classes, "
            f"but counts of shape {confusion.shape}"
        )
    if not len(patch_ids):
        return "no patch"
    if not np.issubdtype(confusion.dtype, np.integer) or confusion.min() < 0:
        return "counts must be whole numbers from 0 on"
    if len(np.unique(patch_ids)) != len(patch_ids):
        return "a patch is counted twice"
    return ""


def _test_set(patch_ids: NDArray[Any], confusion: NDArray[Any]) -> str:
    """Hash of names and true pixels; those of "other" (the last class) depend on the metric."""
    order = np.argsort(patch_ids)
    truth = confusion.sum(axis=2, dtype=np.int64)[order, :-1]
    digest = hashlib.sha256("\n".join(str(name) for name in patch_ids[order]).encode())
    digest.update(np.ascontiguousarray(truth, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


def read_folder(folder: Path) -> Run:
    """Read one run folder (`config.yaml`, `run.json`, `metrics.json`, `history.csv`, the counts).

    The row is the tag `flair2.row` of the config where there is one, else the config's `name`, else
    the name of the folder above a `seed=N`.

    Raises:
        UnfinishedError: The run failed, was killed or still runs.
        DataError: A file is missing, damaged or inconsistent.
    """
    settings = _read_settings(folder)
    row, seed = _row_and_seed(folder, settings)
    state = _read_json(folder / run_state.FILE)
    if state and state.get("status") != run_state.FINISHED:
        raise UnfinishedError(str(state.get("status", "unfinished")), str(state.get("error", "")))
    metrics = _read_json(folder / METRICS)
    numbers = {key: float(value) for key, value in metrics.items() if _is_number(value)}
    return Run(
        row=row,
        seed=seed,
        counts=read_counts(folder / CONFUSION),
        setting={
            "dataset": settings.get("dataset.name", ""),
            "fingerprint": str((state.get("deciding") or {}).get("fingerprint", "")),
            "split": settings.get("split.name", ""),
            "other_pixels": settings.get("metric.other_pixels", ""),
        },
        metrics=numbers,
        settings=settings,
        curves=_read_history(folder / HISTORY),
        source=str(folder),
        identity=str(state.get("identity", "")),
    )


def read_folders(folders: Iterable[Path]) -> Collected:
    """Read run folders, and all run folders below folders that are none themselves.

    A folder with a config but without usable counts gives an `AbsentRun`.

    Raises:
        ConfigError: There is no run folder in one of `folders`.
    """
    runs: list[Run] = []
    absent: list[AbsentRun] = []
    for start in folders:
        found = list(_run_folders(start))
        if not found:
            raise ConfigError(f"no run folder (one with a config.yaml) in {start}")
        for folder in found:
            try:
                runs.append(read_folder(folder))
            except DataError as error:
                absent.append(_absent_folder(folder, error))
    return Collected(tuple(runs), tuple(absent))


def _run_folders(start: Path) -> Iterator[Path]:
    if (start / "config.yaml").is_file():
        yield start
        return
    for config in sorted(start.rglob("config.yaml"), key=lambda path: _natural(path.parent)):
        if config.parent.name != ".hydra":
            yield config.parent


def _natural(path: Path) -> list[tuple[str, int]]:
    """Sort key that puts seed=10 behind seed=9."""
    parts = re.findall(r"(\D*)(\d*)", str(path))
    return [(text, int(number or -1)) for text, number in parts]


def _absent_folder(folder: Path, error: DataError) -> AbsentRun:
    try:
        row, seed = _row_and_seed(folder, _read_settings(folder))
    except DataError as unreadable:
        match = _SEED_FOLDER.fullmatch(folder.name)
        row, seed = (folder.parent.name, int(match[1])) if match else (folder.name, -1)
        return AbsentRun(row, seed, "damaged", str(unreadable))
    if isinstance(error, UnfinishedError):
        return AbsentRun(row, seed, error.state.lower(), error.reason)
    if (folder / CONFUSION).exists():
        return AbsentRun(row, seed, "damaged", str(error))
    return AbsentRun(row, seed, "unfinished", f"no {CONFUSION} in {folder}")


def _read_settings(folder: Path) -> dict[str, str]:
    import yaml

    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise DataError(f"{path} holds no config")
    return {name: render(value) for name, value in flatten(config).items()}


def _row_and_seed(folder: Path, settings: Mapping[str, str]) -> tuple[str, int]:
    match = _SEED_FOLDER.fullmatch(folder.name)
    row = settings.get("tracking.tags.flair2.row") or settings.get("name")
    row = row or (folder.parent.name if match else folder.name)
    seed = settings.get("seed", match[1] if match else "")
    if not seed.isdecimal():
        raise DataError(f"{folder / 'config.yaml'} has no seed")
    return row, int(seed)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    return content if isinstance(content, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_history(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Courses by metric from a table with a column `epoch` counted from 0; blanks are left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    if not path.is_file():
        return curves
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, line in enumerate(csv.DictReader(file)):
                epoch = float(line.get("epoch") or number) + 1
                for name in CURVES:
                    if line.get(name):
                        curves.setdefault(name, []).append((epoch, float(line[name])))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    return curves


def read_mlflow(
    tracking_uri: str,
    *,
    sweep: str | None = None,
    tags: Mapping[str, str] | None = None,
    run_ids: Sequence[str] = (),
) -> Collected:
    """Read runs from an MLflow store or server, over all its experiments.

    Args:
        tracking_uri: As `sqlite:///mlflow.db` or `http://127.0.0.1:5000`.
        sweep: Runs with the tag `flair2.sweep` of this value.
        tags: Runs that have all these tags.
        run_ids: These runs, by id.

    Returns:
        Runs, oldest first. Of several finished runs of one row, seed and identity the latest
        counts; a run that did not finish and was done again is left out.

    Raises:
        ConfigError: Nothing was asked for or nothing found.
        TrackingError: The store does not answer or has no such run.
    """
    wanted = dict(tags or {}) | ({"flair2.sweep": sweep} if sweep else {})
    if not wanted and not run_ids:
        raise ConfigError("name the runs of the report: a sweep, a tag or run ids")
    client = _open(tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        found = [client.get_run(run_id) for run_id in run_ids]
        found += _search(client, wanted) if wanted else []
    except MlflowException as error:
        raise TrackingError(f"{tracking_uri}: {_first_line(error)}") from None
    if not found:
        described = ", ".join(f"{key}={value}" for key, value in wanted.items())
        raise ConfigError(f"no run with {described} in {tracking_uri}")
    return _latest(found, client)


def _open(tracking_uri: str) -> MlflowClient:
    """A client of a store that exists: MLflow makes tables where it finds none."""
    # Usage statistics are not for a report to send, nor a progress bar a run for it to show.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if tracking_uri.startswith("sqlite:///"):
        database = Path(tracking_uri.removeprefix("sqlite:///"))
        if not _holds_runs(database):
            raise TrackingError(f"there is no MLflow database {database}: see --tracking-uri")
    else:
        open_store(tracking_uri)  # a server that does not answer is told at once
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(tracking_uri)
    except MlflowException as error:  # a database of another version
        raise TrackingError(f"{tracking_uri}: {_first_line(error)}") from None


def _holds_runs(database: Path) -> bool:
    if not database.is_file():
        return False
    address = f"{database.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        try:
            found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone()
        except sqlite3.DatabaseError:  # no database at all
            return False
    return found is not None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _search(client: MlflowClient, tags: Mapping[str, str]) -> list[MlflowRun]:
    """All runs with these tags that are rows (a sweep's parent carries no row)."""
    # MLflow's filters know no escape: a value with both kinds of quotes is compared here alone.
    quoted = {key: "'" if "'" not in value else '"' for key, value in tags.items()}
    condition = " and ".join(
        f"tags.`{key}` = {quoted[key]}{value}{quoted[key]}"
        for key, value in tags.items()
        if quoted[key] not in value
    )
    experiments = [each.experiment_id for each in client.search_experiments()]
    found: list[MlflowRun] = []
    token = None
    while True:
        page = client.search_runs(
            experiments,
            condition,
            max_results=500,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += [
            run
            for run in page
            if "flair2.row" in run.data.tags and tags.items() <= run.data.tags.items()
        ]
        token = page.token
        if not token:
            return found


def _latest(found: Sequence[MlflowRun], client: MlflowClient) -> Collected:
    places: dict[tuple[str, int, str], list[MlflowRun]] = {}
    for run in found:
        identity = run.data.tags.get("flair2.identity", "")
        places.setdefault((*_place(run), identity), []).append(run)
    runs: list[Run] = []
    absent: list[AbsentRun] = []
    for (row, seed, _), tried in places.items():
        finished = [run for run in tried if run.info.status == "FINISHED"]
        if not finished:
            state = tried[-1].info.status.lower()
            absent.append(AbsentRun(row, seed, state, f"MLflow run {tried[-1].info.run_id}"))
            continue
        try:
            runs.append(_read_run(finished[-1], client))
        except DataError as error:
            absent.append(AbsentRun(row, seed, "damaged", str(error)))
    return Collected(tuple(runs), tuple(absent))


def _place(run: MlflowRun) -> tuple[str, int]:
    tags, params = run.data.tags, run.data.params
    row = tags.get("flair2.row") or params.get("name") or run.info.run_name or run.info.run_id
    seed = tags.get("flair2.seed") or params.get("seed", "")
    return row, int(seed) if seed.isdecimal() else -1


def _read_run(run: MlflowRun, client: MlflowClient) -> Run:
    row, seed = _place(run)
    tags = run.data.tags
    setting = {
        "dataset": tags.get("flair2.dataset", run.data.params.get("dataset.name", "")),
        "fingerprint": tags.get("flair2.dataset_fingerprint", ""),
        "split": tags.get("flair2.split", run.data.params.get("split.name", "")),
        "other_pixels": run.data.params.get("metric.other_pixels", tags.get("flair2.metric", "")),
    }
    return Run(
        row=row,
        seed=seed,
        counts=_download_counts(run.info.run_id, client),
        setting=setting,
        metrics={key: float(value) for key, value in run.data.metrics.items()},
        settings=dict(run.data.params),
        curves={name: curve for name in CURVES if (curve := _curve(run, name, client))},
        source=f"MLflow run {run.info.run_id}",
        identity=tags.get("flair2.identity", ""),
    )


def _download_counts(run_id: str, client: MlflowClient) -> Counts:
    from mlflow.exceptions import MlflowException

    artifact = f"results/{CONFUSION}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = client.download_artifacts(run_id, artifact, folder)
        except (MlflowException, OSError) as error:
            raise DataError(
                f"MLflow run {run_id} has no artifact {artifact} ({_first_line(error)})"
            ) from None
        try:
            return read_counts(Path(path))
        except DataError as error:
            told = str(error).replace(str(path), artifact)
            raise DataError(f"MLflow run {run_id}: {told}") from None


def _curve(run: MlflowRun, name: str, client: MlflowClient) -> list[tuple[float, float]]:
    """A metric's history, one value an epoch, counted from 1 in the order of the steps."""
    if name not in run.data.metrics:
        return []
    by_step = {
        point.step: point.value
        for point in client.get_metric_history(run.info.run_id, name)
        if math.isfinite(point.value)
    }
    return [(float(at), by_step[step]) for at, step in enumerate(sorted(by_step), 1)]


def tell_rows_apart(runs: Sequence[Run]) -> list[Run]:
    """Give rows of one name and different configs names of their own.

    A plain multirun (`--multirun model=unet,utt`) calls all its runs by one name. Where a row has
    two runs of one seed, the option that differs is put behind the name, as in
    `experiment (model.name=utt)`, and further ones as long as needed.

    Raises:
        ConfigError: Two runs of one row and seed have the same config.
    """
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run)
    labels = {id(run): "" for run in runs}
    for same in rows.values():
        for run, label in zip(same, _labels(same), strict=True):
            labels[id(run)] = f" ({label})" if label else ""
    return [dataclasses.replace(run, row=run.row + labels[id(run)]) for run in runs]


def _labels(runs: Sequence[Run]) -> list[str]:
    """What to call each of a row's runs, nothing where no seed is there twice."""
    seeds = [run.seed for run in runs]
    twice = [run for run in runs if seeds.count(run.seed) > 1]
    if not twice:
        return [""] * len(runs)
    deciding = (key for run in twice for key in run.settings if decides(key) and key != "seed")
    options = list(dict.fromkeys((*TELLING, *deciding)))
    values = {key: [run.settings.get(key, "null") for run in runs] for key in options}
    varied = {key: len(set(each)) for key, each in values.items()}
    key = max(options, key=lambda option: varied[option], default="")
    if not key or varied[key] < 2:
        raise ConfigError(
            f"row {twice[0].row} has two runs of seed {twice[0].seed} and one config: "
            f"{twice[0].source} and {next(r for r in twice[1:] if r.seed == twice[0].seed).source}"
        )
    labels = [f"{key}={value}" for value in values[key]]
    for label in set(labels):
        places = [at for at, each in enumerate(labels) if each == label]
        for at, more in zip(places, _labels([runs[at] for at in places]), strict=True):
            labels[at] += f", {more}" if more else ""
    return labels


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse to compare runs of different data sets, splits, metric settings or test patches.

    A value that was not recorded (empty) agrees with every other; the test set's hash is always
    known. A fingerprint is of the files that a run reads, so fingerprints are compared among runs
    that read the series, and among those that do not.

    Raises:
        ConfigError: They differ; the message says in what and names a run of each kind.
    """
    kinds: dict[str, Callable[[Run], str]] = {
        "data sets": lambda run: run.setting.get("dataset", ""),
        "splits": lambda run: run.setting.get("split", ""),
        "settings of metric.other_pixels": lambda run: run.setting.get("other_pixels", ""),
        "classes": lambda run: ", ".join(run.counts.classes),
        "test patches or labels": lambda run: run.counts.test_set,
    }
    for kind, value_of in kinds.items():
        _require_one(runs, kind, value_of)
    for satellite in (False, True):
        reading = [run for run in runs if _reads_satellite(run) is satellite]
        _require_one(
            reading,
            "contents of the data set (fingerprints)",
            lambda run: run.setting.get("fingerprint", ""),
        )


def _reads_satellite(run: Run) -> bool:
    return run.settings.get("model.name") != "unet"


def _require_one(runs: Sequence[Run], kind: str, value_of: Callable[[Run], str]) -> None:
    values: dict[str, Run] = {}
    for run in runs:
        if value := value_of(run):
            values.setdefault(value, run)
    if len(values) > 1:
        told = "; ".join(f"{value}: {run.row}, {run.source}" for value, run in values.items())
        raise ConfigError(
            f"runs of different {kind} cannot be compared ({told}): report them separately"
        )
