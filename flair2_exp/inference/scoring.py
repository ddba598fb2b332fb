"""Test-time augmentation and ensembles as runs: scored on the test part, recorded, tracked.

What is scored so leaves what every run leaves (`run.folder`), but for a network: a report takes it
as a row beside its members, with an interval and paired differences.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flair2_exp import __version__
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import build
from flair2_exp.config.tracking import LoggersConfig
from flair2_exp.config.training import TestTimeConfig
from flair2_exp.data.fingerprint import fingerprint
from flair2_exp.errors import (
    ConfigError,
    DataError,
    FlairError,
    TrackingError,
    UsageError,
)
from flair2_exp.files import write_text
from flair2_exp.inference.evaluation import (
    config_of,
    evaluate,
    panel,
    record_of,
    require_scorable,
)
from flair2_exp.inference.predictor import Predictor
from flair2_exp.inference.stored import StoredRun
from flair2_exp.lifecycle.folder import Footprint, RunFolder, require_own, require_place
from flair2_exp.lifecycle.record import FINISHED, MEMBERS, RUNNING, RunRecord
from flair2_exp.locking import locked
from flair2_exp.progress import Progress
from flair2_exp.shortage import in_words, reserved
from flair2_exp.signals import signals_as_exceptions, status_of
from flair2_exp.tracking.scrub import scrub
from flair2_exp.tracking.tags import Tag
from flair2_exp.values import differences, digest, shown

if TYPE_CHECKING:
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store

log = logging.getLogger(__name__)

_BY_PREDICTOR: Final = ("test_time.symmetries", "version")
"""What of a run's `deciding` does not hold for predictions that are made of its network now."""


def score(
    predictor: Predictor,
    root: Path,
    *,
    folder: Path | None = None,
    name: str = "",
    tracking_uri: str = "",
    tracked: bool = True,
    batch_size: int = 1,
    workers: int = 0,
    words: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunFolder:
    """Score an ensemble, or a run with test-time augmentation, on the test part; leave a run.

    The same once more finds the run finished and does nothing; what was killed is done again.

    Args:
        predictor: Of the networks.
        root: Of the results.
        folder: Where the run's files go; None: below `outputs` of the root, in a folder that is
            named by the row and by all that decides the result.
        name: Of the leaderboard row; empty: as `ROW (d4)` or `ensemble of 3: ROW (d4)`.
        tracking_uri: Of the MLflow store; empty is that of the first member.
        tracked: Whether MLflow keeps it.
        batch_size: Patches at once.
        workers: Processes that read.
        words: Of the command, kept with the run.
        progress: Is called after each patch.

    Returns:
        The run's folder.

    Raises:
        FlairError: The networks cannot be scored together, the folder holds something else, or the
            store does not answer. Nothing is left then.
    """
    from flair2_exp.lifecycle.assembly import open_store, require_store

    scored = Scored.of(predictor, name)
    own = RunFolder((folder or scored.folder(root)).absolute())
    require_place(own.path)
    require_own(own)
    config, record = scored.tracked(tracking_uri, enabled=tracked), scored.record(own)
    require_store(config)
    before = Footprint.of(own.path)
    refused = "choose another folder with --out FOLDER"
    with (
        signals_as_exceptions(),
        in_words(own.path, lambda: "The same command scores it again."),
        locked(own.path, refused) as exclusive,
    ):
        with _removed_if_refused(before, own):
            store = open_store(config)
            if _is_done(own, record, store):
                return own
            run = _open(store, config, record, own, words, take_over=exclusive)
        options = {"batch_size": batch_size, "workers": workers, "progress": progress}
        _score(predictor, own, config, record, run, scored.node, options)
    return own


def _is_done(folder: RunFolder, record: RunRecord, store: Store | None) -> bool:
    """Return whether a folder holds this run finished; else take over its MLflow run.

    Raises:
        ConfigError: It holds another run.
    """
    from flair2_exp.lifecycle.delivery import settle
    from flair2_exp.lifecycle.experiment import read_record

    earlier = read_record(folder)
    if earlier is None:
        return False
    changes = differences(earlier.deciding, record.deciding)
    changes |= differences({"name": earlier.row}, {"name": record.row})
    if changes:
        raise ConfigError(
            f"{folder} holds another run: {shown(changes)}.\n"
            "Choose another folder with --out FOLDER."
        )
    record.run_id, record.start = earlier.run_id, earlier.start
    if not earlier.is_done(test=True):
        return False
    log.info("finished before: %s", folder)
    if store is not None and earlier.run_id:
        try:
            settle(folder, earlier, store)
        except TrackingError as error:
            log.warning("%s", error)
    return True


@contextmanager
def _removed_if_refused(before: Footprint, folder: RunFolder) -> Iterator[None]:
    """Remove what was written for a run that is refused before it begins, and nothing else."""
    try:
        yield
    except FlairError:
        if not folder.record.exists():
            before.restore()
        raise


def _score(
    predictor: Predictor,
    folder: RunFolder,
    config: Config,
    record: RunRecord,
    run: Run,
    node: Mapping[str, object],
    options: Mapping[str, Any],
) -> None:
    """Predict, and leave a finished run; what goes wrong is noted in its record."""
    from flair2_exp.lifecycle.experiment import log_config, resolved_yaml
    from flair2_exp.lifecycle.results import finish, save_results, title
    from flair2_exp.models.registry import count_parameters

    try:
        with run, reserved(folder.reserve):
            write_text(folder.config, resolved_yaml(config, node))
            record.write(folder)
            log_config(config, record, run, node)
            done = evaluate(predictor, **options)
            parameters = sum(count_parameters(each.task.model) for each in predictor.members)
            metrics = {**done.metrics, "model/parameters": float(parameters)}
            heading = title(config, metrics["test/miou"])
            rows = panel(predictor, done.shown)
            save_results(done.results, predictor.nomenclature, rows, folder, heading)
            finish(config, folder, run, metrics, record.tags)
            run.flush()
            record.finish(FINISHED)
            record.write(folder)
    except BaseException as error:
        if record.status != FINISHED:
            record.finish(status_of(error), scrub(f"{type(error).__name__}: {error}"))
            with suppress(OSError):  # the disk may be what it failed of
                record.write(folder)
        raise


def _open(
    store: Store | None,
    config: Config,
    record: RunRecord,
    folder: RunFolder,
    words: Sequence[str],
    *,
    take_over: bool,
) -> Run:
    """Start or resume the MLflow run, or what stands in for it, and note it in the record."""
    from flair2_exp.lifecycle.experiment import run_name
    from flair2_exp.tracking.provenance import collect
    from flair2_exp.tracking.run import open_run, valid_tags

    origin = collect(words)
    record.tags = valid_tags({**record.tags, **origin.tags()})
    run = open_run(
        store,
        config.tracking.experiment,
        run_name(config, record),
        folder.unsent,
        tags=record.tags,
        run_id=record.run_id,
        lookup=(Tag.FOLDER, Tag.IDENTITY),
        take_over=take_over,
    )
    record.status, record.run_id = RUNNING, run.run_id
    record.store = "" if store is None else store.address
    record.start = record.start or int(time.time() * 1000)
    run.log_files(origin.files())
    return run


@dataclass(frozen=True)
class Scored:
    """An ensemble, or a run with test-time augmentation, in the words of a run's record.

    Attributes:
        config: The first member's, with the row's name and the test-time augmentation.
        deciding: What decides the result. Of one run it is what the run itself would have, trained
            with that `test_time`; so its seeds make one row.
        tags: As `RunRecord.of` sets them.
        node: What `config.yaml` holds beside the config (`record.MEMBERS`).
    """

    config: Config
    deciding: Mapping[str, Any]
    tags: Mapping[str, str]
    node: Mapping[str, object]

    @classmethod
    def of(cls, predictor: Predictor, name: str = "") -> Scored:
        """Describe what a predictor predicts.

        Raises:
            FlairError: Its networks cannot be scored together, or it is one run as it is.
        """
        require_scorable(predictor)
        stored = [member.stored for member in predictor.members]
        single, word = len(stored) == 1, predictor.symmetries
        first = config_of(stored[0])
        if single and word == first.test_time.symmetries and stored[0].is_own:
            raise UsageError(
                f"{stored[0].name} is one run, predicted as in its own test, which is its score.\n"
                "Name several runs, or add --tta d4."
            )
        test_time = build(TestTimeConfig, {"name": word, "symmetries": word})
        config = replace(first, name=name or _name(predictor), test_time=test_time)
        records = [record_of(each) for each in stored]
        prints = sorted({each.fingerprint_of("test") for each in predictor.data})
        members = sorted(
            [_identity(each), weight]
            for each, weight in zip(stored, predictor.weights, strict=True)
        )
        deciding: dict[str, Any] = {"version": __version__}
        if word != "none":
            deciding |= {"test_time.symmetries": word}
        if single:
            own = {n: each for n, each in records[0].deciding.items() if n not in _BY_PREDICTOR}
            deciding = {**own, **deciding}
            if not stored[0].is_own:
                deciding |= {"ensemble.checkpoint": stored[0].checkpoint.name}
        else:
            deciding |= {"ensemble.members": members, "fingerprint": ",".join(prints)}
        tags = {
            Tag.ROW: config.name,
            **({Tag.SEED: str(records[0].seed)} if single else {}),
            Tag.IDENTITY: digest(deciding),
            **_tags(predictor, records),
        }
        node = {
            "runs": [str(each.folder if each.is_own else each.checkpoint) for each in stored],
            "identities": [each.identity for each in records],
            "weights": list(predictor.weights),
        }
        return cls(config, deciding, {str(n): text for n, text in tags.items()}, {MEMBERS: node})

    def tracked(self, uri: str, *, enabled: bool) -> Config:
        """Return the config with its tracking; without an address in the first member's store."""
        options = self.config.tracking
        name = None if Tag.SEED in self.tags else self.config.name
        tracking = replace(
            options, enabled=enabled, uri=uri or options.uri, run_name=name, tags={},
            loggers=LoggersConfig(),
        )  # fmt: skip
        return replace(self.config, tracking=tracking)

    def folder(self, root: Path) -> Path:
        """Return the folder that is the run's where nobody names one."""
        short = re.sub(r"[^\w.=/-]+", "_", self.config.name).strip("_")
        return root / "outputs" / short / self.tags[Tag.IDENTITY]

    def record(self, folder: RunFolder) -> RunRecord:
        """Return the record of the run that begins in a folder."""
        return RunRecord({**self.tags, str(Tag.FOLDER): str(folder.path)}, dict(self.deciding))


def _name(predictor: Predictor) -> str:
    """Return the row of what a predictor predicts: `ROW (d4)`, `ensemble of 3: ROW (d4)`."""
    rows = dict.fromkeys(record_of(each.stored).row for each in predictor.members)
    count, name = len(predictor.members), " + ".join(rows)
    name = name if count == 1 else f"ensemble of {count}: {name}"
    return name if predictor.symmetries == "none" else f"{name} ({predictor.symmetries})"


def _tags(predictor: Predictor, records: Sequence[RunRecord]) -> dict[Tag, str]:
    """Return the tags that tell what runs share, and what all of them read.

    A fingerprint is of the inputs that a run reads. That of the test part is made of all inputs
    together; that of the training data is known where the members that read all of it agree.
    """
    reads = ",".join(sorted(predictor.reads))
    whole = {each.fingerprint for each in records if each.tags.get(Tag.READS) == reads}
    weights = predictor.weights if len(records) > 1 else ()
    members = [
        f"{each.row} seed {each.seed} ({each.identity})"
        + (f" x {weights[at]:.4g}" if weights else "")
        for at, each in enumerate(records)
    ]
    same = {
        tag: "+".join(dict.fromkeys(each.tags.get(tag, "") for each in records))
        for tag in (Tag.DATASET, Tag.SPLIT, Tag.METRIC, Tag.MODEL, Tag.COMPAT)
    }
    return same | {
        Tag.FINGERPRINT: whole.pop() if len(whole) == 1 else "",
        Tag.TEST_FINGERPRINT: _test_fingerprint(predictor),
        Tag.READS: reads,
        Tag.MEMBERS: "; ".join(members),
    }


def _test_fingerprint(predictor: Predictor) -> str:
    """Return the fingerprint of the test part of all inputs; empty where no data have them all."""
    for data in predictor.data:
        if data.reads == predictor.reads:
            return data.fingerprint_of("test")
    for data in predictor.data:
        with suppress(DataError):
            return fingerprint(data.groups, predictor.reads, ("test",))
    return ""


def _identity(stored: StoredRun) -> str:
    """Return a run's identity, with the checkpoint where that is not the tested one."""
    identity = record_of(stored).identity
    return identity if stored.is_own else f"{identity} {stored.checkpoint.name}"
