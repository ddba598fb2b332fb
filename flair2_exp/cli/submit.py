"""`python -m flair2_exp submit`: a submission to the FLAIR #2 challenge, and a check of any."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.cli.predicting import add_run_arguments, predictor_of
from flair2_exp.cli.progress import progress
from flair2_exp.cli.verbs import PROGRAM, Parser
from flair2_exp.errors import UsageError

if TYPE_CHECKING:
    from flair2_exp.inference.submission import SubmissionSummary

_SHOWN: Final = 20
"""Kinds of problems that are printed."""


def main(arguments: Sequence[str]) -> int:
    """Write a submission, or check one.

    Returns:
        0, or 1 where a checked submission is not as it should be.

    Raises:
        FlairError: The run cannot be predicted, or the file not be written or read.
    """
    options = _parser().parse_args(list(arguments))
    if options.check is not None:
        return _check(options)
    if options.ids is not None:
        raise UsageError("--ids says what --check expects; a submission holds its run's test part.")
    if options.batch_size < 1 or options.workers < 0:
        raise UsageError(
            f"--batch-size {options.batch_size} --workers {options.workers}: expected 1 or more, "
            "and 0 or more."
        )
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


def _check(options: argparse.Namespace) -> int:
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


def _expected(options: argparse.Namespace) -> tuple[list[str], int]:
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


def _parser() -> Parser:
    made = Parser(
        prog=f"{PROGRAM} submit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{PROGRAM} submit RUN [--out ZIP] [options]\n"
        f"       {PROGRAM} submit --check ZIP [--ids FILE|RUN]",
        description="Predict a run's test part as a submission to the FLAIR #2 challenge: a zip\n"
        "of PRED_061946.tif and so on. Interrupted, the same command resumes.\n\n"
        f"  {PROGRAM} submit outputs/demo/2026-11-27_10-00-00 --tta d4\n"
        f"  {PROGRAM} submit --ensemble RUN1 RUN2 --out submission.zip\n"
        f"  {PROGRAM} submit --check submission.zip --ids test_ids.txt",
    )
    add_run_arguments(made)
    made.add_argument("--out", type=Path, default=Path("submission.zip"), metavar="ZIP",
                      help="(default: submission.zip)")  # fmt: skip
    made.add_argument("--batch-size", type=int, default=1, metavar="N", help="patches at once")
    made.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read")
    made.add_argument("--overwrite", action="store_true", help="replace the zip")
    made.add_argument("--check", type=Path, metavar="ZIP", help="check a submission, of any origin")
    made.add_argument("--ids", metavar="FILE|RUN", help="patches that a checked zip must hold: a "
                      "text with one id per line, or a run's test part")  # fmt: skip
    return made
