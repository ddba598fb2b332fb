"""`flair2-exp rm`: runs and sweeps are removed, in MLflow too."""

from __future__ import annotations

import click

from flair2_exp.cli import shown
from flair2_exp.cli.verbs import verb


@verb(
    "rm",
    examples="""
    flair2-exp rm outputs/unet/TIME      # a run
    flair2-exp rm leaderboard            # a sweep or a search, with all its runs
    flair2-exp rm FOLDER1 FOLDER2 --yes
    """,
)
@click.argument("words", nargs=-1, required=True, metavar="RUN|SWEEP...", type=shown.PLACE)
@click.option("--folder-only", is_flag=True, help="Leave MLflow as it is.")
@shown.yes
@shown.tracking_uri
def command(words: tuple[str, ...], folder_only: bool, yes: bool, tracking_uri: str) -> int:
    """Remove runs and sweeps for good: their folders, and what MLflow has of them.

    It asks first. What a process is at work in is refused, and so is what does not lie in outputs/
    or multirun/ of where you stand. The exit status is 1 where the answer is no.
    """
    from flair2_exp.sweeps.removal import removal_of

    removals = {each.folder: each for each in (removal_of(word, tracking_uri) for word in words)}
    for folder, each in removals.items():
        runs = f"{each.runs} run{'' if each.runs == 1 else 's'}"
        ids = 0 if folder_only else sum(map(len, each.mlflow_runs.values()))
        in_mlflow = f", {ids} in MLflow" if ids else ""
        print(f"{folder}: {runs}, {each.size / 1e6:,.1f} MB{in_mlflow}")
    what = "it" if len(removals) == 1 else f"these {len(removals)} folders"
    if not shown.confirmed(f"Remove {what} for good", yes=yes):
        print("Nothing is removed.")
        return 1
    for folder, each in removals.items():
        each.remove(folder_only=folder_only)
        print(f"removed: {folder}", flush=True)
    return 0
