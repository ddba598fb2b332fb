"""A sweep's own MLflow run, under which its jobs' runs stand: the same one each time."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.config.experiment import Config
from flair2_exp.files import write_text
from flair2_exp.lifecycle.assembly import open_store
from flair2_exp.lifecycle.delivery import BEGUN, COMPLETE
from flair2_exp.lifecycle.folder import SWEEP_FILE, RunFolder, run_folders
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.tracking.summary import cell
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.tracking.run import Run
    from flair2_exp.tracking.store import Store

REPORT: Final = "report"
"""The folder of a sweep's report, and that of its artifacts."""
SUMMARY: Final = "summary.md"
"""The report in short, in that folder: the first part of the description on MLflow's page."""
_DESCRIPTION_LIMIT: Final = 7500
"""Characters of a description; MLflow takes 8000 of a tag."""


@dataclass(frozen=True)
class Notes:
    """What a sweep's folder says of its MLflow run; empty where that is not known yet.

    Attributes:
        name: The sweep's.
        key: By which its run is found that was made and not noted.
        parent_run_id: Of its run.
        store: The address of the store, without credentials.
        folder: Where the sweep's folder was when this was written.
    """

    name: str = ""
    key: str = ""
    parent_run_id: str = ""
    store: str = ""
    folder: str = ""

    @classmethod
    def read(cls, folder: Path) -> Notes | None:
        """Return a sweep's notes; None where a folder has none, or torn ones."""
        try:
            values = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(values, dict):
            return None
        return cls(**{each.name: str(values.get(each.name, "")) for each in fields(cls)})

    def write(self, folder: Path) -> None:
        """Write them, in one step."""
        values = {name: value for name, value in asdict(self).items() if value}
        write_text(folder / SWEEP_FILE, json.dumps(values) + "\n")


def open_parent(name: str, folder: Path, config: Config, *, take_over: bool = False) -> Run:
    """Start the sweep's MLflow run, or resume it when the sweep is taken up again.

    Args:
        name: The sweep's.
        folder: The sweep's, absolute.
        config: Of one of its jobs, for the store.
        take_over: The caller holds the folder.
    """
    notes = Notes.read(folder) or Notes()
    store, experiment = open_store(config), config.tracking.experiment
    return _open(replace(notes, name=name), folder, store, experiment, take_over=take_over)


def _open(
    notes: Notes,
    folder: Path,
    store: Store | None,
    experiment: str,
    *,
    take_over: bool,
    tags: Mapping[str, str] | None = None,
) -> Run:
    from flair2_exp.tracking.run import open_run

    run_id, key = notes.parent_run_id, notes.key or uuid.uuid4().hex
    noted = replace(
        notes, key=key, store="" if store is None else store.address, folder=str(folder)
    )
    if store is not None and not run_id:
        # The key is on the disk before the run is made: a process that is killed before it has
        # noted the run's id finds the run by it, and no sweep gets two parents.
        if notes.key:
            found = store.find_run(store.ensure_experiment(experiment), {Tag.SWEEP_KEY: key})
            run_id = found or ""
        noted.write(folder)
    own: dict[str, str] = {Tag.SWEEP: notes.name, Tag.KIND: "sweep"}
    own |= {Tag.FOLDER: str(folder), Tag.SWEEP_KEY: key, **(tags or {})}
    run = open_run(
        store,
        experiment,
        notes.name,
        RunFolder(folder).unsent,
        tags={**own, **(tags or {})},
        run_id=run_id,
        take_over=take_over,
    )
    if store is not None:
        replace(noted, parent_run_id=run.run_id).write(folder)
    return run


def rebuild_parent(folder: Path, notes: Notes, store: Store, experiment: str, status: str) -> int:
    """Make a sweep's MLflow run again, with the report that its folder holds.

    Args:
        folder: The sweep's, absolute; the caller holds it.
        notes: The sweep's.
        store: Where to make it.
        experiment: MLflow's experiment.
        status: How the sweep ended.

    Returns:
        How many records could not be sent and wait in the folder.

    Raises:
        TrackingError: The store does not take it.
    """
    if not notes.parent_run_id or store.find(notes.parent_run_id) is None:
        notes = replace(notes, parent_run_id="")
    begun = {str(Tag.REBUILT): BEGUN}
    run = _open(notes, folder, store, experiment, take_over=True, tags=begun)
    for path in sorted((folder / REPORT).glob("*")):
        if path.is_file():
            run.log_artifact(path, REPORT)
    run.describe(description(folder, run.experiment_id))
    run.set_tags({Tag.REBUILT: COMPLETE})
    run.finish(status)
    return run.waiting


def description(folder: Path, experiment_id: str) -> str:
    """Return the description on the page of a sweep's MLflow run, as Markdown.

    The report in short, and links to the pages of its runs, as many as there is room for. The
    links are relative to the page, so that they hold wherever MLflow's pages are served.
    """
    from flair2_exp.tracking.view import tagged_runs_page

    path = folder / REPORT / SUMMARY
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    notes = Notes.read(folder) or Notes()
    records = [RunRecord.read(each) for each in run_folders(folder)]
    runs = [each for each in records if each is not None and each.run_id]
    if not (runs and experiment_id):
        return text
    place = tagged_runs_page(experiment_id, Tag.SWEEP, notes.name)
    links = [f"[All {len(runs)} runs, by score]({place})", "", *_LINKS_HEAD]
    room = _DESCRIPTION_LIMIT - len(text) - sum(map(len, links))
    lines = _links(runs, experiment_id)
    ends = accumulate(len(line) + 1 for line in lines)
    kept = [line for line, end in zip(lines, ends, strict=True) if end < room]
    more = len(lines) - len(kept)
    links += [*kept, *([f"| {more} more rows | see all runs |"] if more else [])]
    return "\n".join([text, *links]).lstrip() + "\n"


_LINKS_HEAD: Final = ("| row | test mIoU by seed |", "| --- | --- |")


def _links(runs: Sequence[RunRecord], experiment_id: str) -> list[str]:
    """Return a line of a table for each row: its seeds' scores, each a link to the run's page."""
    from flair2_exp.tracking.view import run_page

    rows: dict[str, list[str]] = {}
    for run in sorted(runs, key=lambda each: each.seed):
        score = run.scores.get("test/miou")
        shown = run.status.lower() if score is None else f"{score:.4f}"
        place = run_page(experiment_id, run.run_id)
        rows.setdefault(run.row, []).append(f"{run.seed}: [{shown}]({place})")
    return [f"| {cell(row)} | {', '.join(cells)} |" for row, cells in rows.items()]


def parent_of(folder: Path) -> str | None:
    """Return the id of the MLflow run of the sweep in a folder; None where it has none."""
    notes = Notes.read(folder)
    return (notes.parent_run_id or None) if notes is not None else None
