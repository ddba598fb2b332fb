"""`flair2-exp submit`: a submission to the FLAIR #2 challenge, and a check of any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import click

from flair2_exp.cli.predicting import predictor_of, run_arguments
from flair2_exp.cli.progress import progress
from flair2_exp.cli.verbs import PROGRAM, option, verb
from flair2_exp.errors import UsageError

if TYPE_CHECKING:
    from flair2_exp.inference.submission import SubmissionSummary

_SHOWN: Final = 20
"""Kinds of problems that are printed."""


@verb(
    "submit",
    usage="""
    RUN [--out ZIP] [OPTIONS]
    --check ZIP [--ids FILE|RUN]
    """,
    examples="""
    flair2-exp submit outputs/demo/TIME --tta d4
    flair2-exp submit --ensemble RUN1 RUN2 --out submission.zip
    flair2-exp submit --check submission.zip --ids test_ids.txt
    """,
)
@run_arguments()
@option(
    "--out",
    type=click.Path(path_type=Path),
    default="submission.zip",
    metavar="ZIP",
    help="(default: submission.zip)",
)
@option("--batch-size", type=click.IntRange(1), default=1, metavar="N", help="Patches at once.")
@option("--workers", type=click.IntRange(0), default=0, metavar="N", help="Processes that read.")
@option("--overwrite", is_flag=True, help="Replace the zip.")
@option(
    "--check",
    type=click.Path(path_type=Path),
    metavar="ZIP",
    help="Check a submission, of any origin.",
    section="Check",
)
@option(
    "--ids",
    metavar="FILE|RUN",
    section="Check",
    help="Patches that a checked zip must hold: a text with one id per line, or a run's test part.",
)
def command(**chosen: Any) -> int:
    """Predict a run's test part as a submission to the FLAIR #2 challenge, or check one.

    A submission is a zip of PRED_061946.tif and so on. Interrupted, the same command resumes. The
    exit status is 1 where a checked submission is not as it should be.
    """
    options = SimpleNamespace(**chosen)
    if options.check is not None:
        return _check(options)
    if options.ids is not None:
        raise UsageError("--ids says what --check expects; a submission holds its run's test part.")
    from flair2_exp.inference.rasters import require_free

    require_free([options.out], options.overwrite)  # before a network is loaded
    from flair2_exp.inference.submission import write_submission

    predictor = predictor_of(options)
    with progress("patches") as report:
        summary = write_submission(
            predictor,
            options.out,
            batch_size=options.batch_size,
            workers=options.workers,
            overwrite=options.overwrite,
            progress=report,
        )
    print(_text(summary))
    return 0


def _text(summary: SubmissionSummary) -> str:
    from flair2_exp.inference.submission import PATCHES, SIZE, TIME_LIMIT

    size, count = summary.patch_size, summary.patches
    lines = [f"{summary.path}: {count:,} predictions of {size} x {size} pixels."]
    if (count, size) != (PATCHES, SIZE):
        lines.append(
            f"This is the run's own test part: FLAIR #2's has {PATCHES:,} patches of {SIZE} x "
            f"{SIZE} pixels, and the challenge takes no other."
        )
    if summary.predicted:
        pace = summary.seconds / summary.predicted
        lines.append(
            f"Reading and network took {_time(summary.seconds)} for {summary.predicted:,} patches, "
            f"at which pace {PATCHES:,} take {_time(pace * PATCHES)} on this machine. The "
            f"challenge allowed {_time(TIME_LIMIT)} on its organisers' (2.5 times its baseline)."
        )
    if summary.predicted < count:
        kept = count - summary.predicted
        lines.append(f"{kept:,} predictions were there, from a command that was interrupted.")
    lines.append(f"Check it with `{PROGRAM} submit --check {summary.path}`.")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    """Return seconds as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _check(options: SimpleNamespace) -> int:
    if options.run or options.ensemble:
        raise UsageError("--check takes a zip alone; name the run whose patches it holds with "
                         "--ids RUN.")  # fmt: skip
    from flair2_exp.inference.submission import PATCHES, SIZE, check_submission

    ids, size = _expected(options) if options.ids else (None, SIZE)
    with progress("files") as report:
        findings = check_submission(options.check, ids, size=size, progress=report)
    if not findings:
        which = f"all {len(ids):,} patches" if ids is not None else "as far as the files tell"
        print(f"{options.check}: sound, {which}.")
        if ids is None:
            print(f"Name the {PATCHES:,} test patches with --ids to see that none is missing.")
        return 0
    print(f"{options.check}: {len(findings):,} problems.")
    names: dict[str, list[str]] = {}
    for each in findings:
        names.setdefault(each.problem, []).append(each.name)
    for problem, files in list(names.items())[:_SHOWN]:
        print(_line(problem, files))
    if len(names) > _SHOWN:
        print(f"  and {len(names) - _SHOWN:,} other kinds of problems.")
    return 1


def _line(problem: str, files: Sequence[str]) -> str:
    """Return a line about the files with one problem, the names of a stranger's zip escaped."""
    name = files[0].encode("unicode_escape").decode()
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return f"  {name}{more}: {problem}." if name else f"  {problem}."


def _expected(options: SimpleNamespace) -> tuple[list[str], int]:
    """Return the ids of the patches that a submission must hold, and their size."""
    from flair2_exp.inference.submission import SIZE, read_ids

    path = Path(options.ids)
    if path.is_file() and path.suffix not in (".ckpt", ".pt"):
        return read_ids(path), SIZE
    from flair2_exp.inference.predictor import Predictor
    from flair2_exp.inference.reading import positions_of

    predictor = Predictor.from_run(options.ids, device="cpu", tracking_uri=options.tracking_uri)
    ids = predictor.data[0].index.ids[positions_of(predictor, "test")]
    return ids.tolist(), predictor.patch_size
