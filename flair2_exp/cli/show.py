"""`flair2-exp show`: all about one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import click

from flair2_exp.cli import shown
from flair2_exp.cli.verbs import PROGRAM, verb
from flair2_exp.errors import FlairError
from flair2_exp.results.run import AT_WORK, DONE, RecordedRun
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.report.results import Score

_LEFT_OUT: Final = ("paths.", "sweep.", "ensemble.")
_COUNTED: Final = "trainer.num_nodes"
"""Recorded within `trainer.devices` among what decides a run's result."""


@verb(
    "show",
    examples="""
    flair2-exp show outputs/unet/TIME                 # its folder, or one above
    flair2-exp show 93dafb2daa7047c5826638c997bfb4aa  # the id of its MLflow run
    flair2-exp show RUN --json | jq .scores
    """,
)
@click.argument("run", type=shown.PLACE)
@shown.tracking_uri
@shown.as_json
def command(run: str, tracking_uri: str, as_json: bool) -> None:
    """Show a run: how it ended, options that are not the defaults, scores, files, origin.

    Intervals are 95 %, over the domains or areas of the test set.
    """
    found = RecordedRun.find(run, tracking_uri)
    facts, options, scores = facts_of(found), changed_options(found), class_scores(found)
    files = sorted(
        (str(path.relative_to(found.folder.path)), path.stat().st_size)
        for path in found.folder.path.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    if as_json:
        shown.print_json({
            **facts,
            "options": {name: {"value": v, "default": d} for name, (v, d) in options.items()},
            "scores": dict(found.record.scores or found.record.training),
            "intervals": {name: list(each.shown) for name, each in scores.items()},
            "files": dict(files),
        })  # fmt: skip
        return
    _print(facts, options, scores)
    _print_rest(found, list(scores), files)


def facts_of(run: RecordedRun) -> dict[str, Any]:
    """Return what a run is, how it ended, where it comes from and how it resumes."""
    record, tags = run.record, run.record.tags
    state, note = run.state_and_note
    dirty = " and changes" if tags.get(Tag.DIRTY) == "true" else ""
    return {
        "folder": str(run.folder),
        "status": state,
        "note": note,
        "row": record.row,
        "seed": record.seed,
        "data": f"{tags.get(Tag.DATASET, '?')}, split {tags.get(Tag.SPLIT, '?')}, "
        f"fingerprint {record.fingerprint[:12] or '?'}",
        "identity": record.identity,
        "started": run.started and f"{run.started:%Y-%m-%d %H:%M:%S}",
        "epochs": run.epochs,
        "mlflow": f"{record.run_id} in {record.store}" if record.run_id else "",
        "command": tags.get(Tag.SOURCE_NAME, ""),
        "commit": f"{tags[Tag.COMMIT]}{dirty}" if Tag.COMMIT in tags else "",
        "version": tags.get(Tag.VERSION, ""),
        "packages": tags.get(Tag.PACKAGES, ""),
        "machine": tags.get(Tag.MACHINE, ""),
        "error": record.error,
        "resume": resumed_by(run),
    }


def resumed_by(run: RecordedRun) -> str:
    """Return the command that resumes a run; empty where it is done or at work."""
    if run.state in (DONE, AT_WORK):
        return ""
    tags = run.record.tags
    if Tag.STUDY in tags:
        return f"the command of its search, {tags[Tag.STUDY]}"
    if Tag.SWEEP in tags:
        return f"the command of its sweep, {tags[Tag.SWEEP]}"
    return f"{PROGRAM} resume={run.folder.path.absolute()}"


def changed_options(run: RecordedRun) -> dict[str, tuple[Any, Any]]:
    """Return the options that the run reads and that are not the defaults, each with its default.

    One that decides no result is kept where the run reads anything of its group.
    """
    from flair2_exp.cli.composed import composed
    from flair2_exp.config.fields import plain
    from flair2_exp.config.identity import decides
    from flair2_exp.values import differences, flatten

    defaults = flatten(plain(composed([])))
    changes = differences(run.settings, defaults)
    read = run.record.deciding or run.settings
    idle = set(map(_group, filter(decides, run.settings))) - set(map(_group, read))
    return {
        name: both
        for name, both in changes.items()
        if not name.startswith(_LEFT_OUT)
        and _group(name) not in idle
        and (name in read or name == _COUNTED or not decides(name))
    }


def _group(option: str) -> str:
    return option.partition(".")[0]


def class_scores(run: RecordedRun) -> dict[str, Score]:
    """Return mIoU and the IoU of each scored class with intervals; none where it has no counts."""
    if not run.folder.confusion.is_file() or run.state != DONE:
        return {}
    from flair2_exp.report.comparison import report_of, scored_run
    from flair2_exp.report.results import ReportOptions

    with suppress(FlairError):
        report = report_of(scored_run(run.folder), ReportOptions())
        row = report.rows[0]
        return {"mIoU": row.miou, **dict(zip(report.scored, row.classes, strict=True))}
    return {}


def _print(
    facts: Mapping[str, Any], options: Mapping[str, Any], scores: Mapping[str, Score]
) -> None:
    from flair2_exp.report import words
    from flair2_exp.values import render

    for name, value in facts.items():
        if value not in ("", None):
            print(f"{name:<10}{value}")
    print()
    rows = [[name, *map(render, both)] for name, both in options.items()]
    if rows:
        shown.print_table(["option", "value", "default"], rows)
    else:
        print("All options have their defaults.")
    if scores:
        print()
        lines = [[n, words.number(s.value), words.interval(s.shown)] for n, s in scores.items()]
        shown.print_table(["IoU", " test", " 95 % interval"], lines)


def _print_rest(run: RecordedRun, printed: Sequence[str], files: Sequence[tuple[str, int]]) -> None:
    """Print the other numbers, and the files."""
    own = run.record.scores or run.record.training
    shown_above = {"test/miou", *(f"test/iou/{name}" for name in printed)} if printed else set()
    numbers = [[name, _number(value)] for name, value in own.items() if name not in shown_above]
    if numbers:
        print()
        shown.print_table(["number", " value"], numbers)
    print()
    shown.print_table(["file", " bytes"], [[name, f"{size:,}"] for name, size in files])


def _number(value: float) -> str:
    if value.is_integer():
        return f"{value:,.0f}"
    return f"{value:,.4f}" if abs(value) >= 0.001 else f"{value:.2e}"
