"""`flair2-exp repair`: what killed processes and removed folders leave behind is set right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flair2_exp.cli import shown
from flair2_exp.cli.verbs import verb

if TYPE_CHECKING:
    from flair2_exp.sweeps.repair import Fault


@verb(
    "repair",
    examples="""
    flair2-exp repair                       # all of outputs/ and multirun/
    flair2-exp repair multirun/leaderboard  # one sweep
    flair2-exp repair --yes                 # without asking
    """,
)
@click.argument(
    "folders", nargs=-1, metavar="[FOLDER]...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)  # fmt: skip
@shown.yes
def command(folders: tuple[Path, ...], yes: bool) -> int:
    """Set right what killed processes and removed folders leave behind; it asks first.

    Runs that claim to be at work and are not, in their folders and in MLflow; files that were never
    written whole; and MLflow runs whose folder is gone, which are removed where you agree. What is
    sound is kept, and what a process is at work in is left alone. The exit status is 1 where
    something is still to be done.
    """
    from flair2_exp.errors import TrackingError
    from flair2_exp.results.finding import results_folders
    from flair2_exp.sweeps.repair import faults_of_runs, faults_of_store, stores_of

    places = [folder.absolute() for folder in folders or results_folders()]
    found = list(faults_of_runs(places))
    unanswered = 0
    for uri in stores_of(places):
        try:
            found += faults_of_store(uri, places)
        except TrackingError as error:
            unanswered += 1
            print(f"left out: {str(error).splitlines()[0]}")
    if not found:
        print("Nothing to repair." if places else "No outputs or multirun here.")
        return int(unanswered > 0)
    for fault in found:
        print(f"{fault.text}{f': {fault.remedy}' if fault.remedy else ''}")
    mended = _mend([each for each in found if not each.removes], "Do that", yes=yes)
    gone = [each for each in found if each.removes]
    mended &= _mend(gone, f"Remove {len(gone)} from MLflow", yes=yes)
    return int(unanswered > 0 or not mended)


def _mend(faults: Sequence[Fault], question: str, *, yes: bool) -> bool:
    """Set faults right where the answer is yes; return whether all are."""
    able = [each for each in faults if each.mend is not None]
    if able and not shown.confirmed(question, yes=yes):
        return False
    reasons = [reason for each in able if each.mend is not None and (reason := each.mend())]
    for reason in reasons:
        print(f"not done: {reason}")
    if able:
        print(f"{len(able) - len(reasons)} of {len(able)} done")
    return not reasons and len(able) == len(faults)
