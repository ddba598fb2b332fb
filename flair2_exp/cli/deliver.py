"""`flair2-exp deliver`: MLflow gets what it lacks of the runs below a folder."""

from __future__ import annotations

from pathlib import Path

import click

from flair2_exp.cli.verbs import verb
from flair2_exp.results.finding import results_folders

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@verb(
    "deliver",
    examples="""
    flair2-exp deliver                       # all below outputs/ and multirun/
    flair2-exp deliver multirun/leaderboard  # one sweep
    flair2-exp deliver outputs/demo --tracking-uri sqlite:////other/mlflow.db
    """,
)
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=_FOLDER)
@click.option(
    "--tracking-uri", metavar="URI", default="",
    help="Where to deliver (default: the store that each folder names).",
)  # fmt: skip
def command(folders: tuple[Path, ...], tracking_uri: str) -> int:
    """Send to MLflow what runs could not send, and make runs and sweeps that it lacks again.

    FOLDER is one of a run, of a sweep, or of many; the folders are the truth, MLflow is a view of
    them. The exit status is 1 where something is still not delivered.
    """
    from flair2_exp.sweeps.delivery import Deliverer

    folders = folders or results_folders()
    deliverer = Deliverer(tracking_uri)
    count = left = 0
    for folder in folders:
        for delivery in deliverer.below(folder):
            count += 1
            left += delivery.left
            rest = f"; {delivery.left} left" if delivery.left else ""
            print(f"{delivery.folder}: {delivery.text}{rest}", flush=True)
    if not count:
        print(f"MLflow has everything below {', '.join(map(str, folders)) or Path.cwd()}.")
    elif left:
        print("Not everything is delivered: give the command again when the store takes it.")
    return int(left > 0)
