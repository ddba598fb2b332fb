"""`python -m flair2_exp deliver`: MLflow gets what it lacks of the runs below a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flair2_exp.cli.verbs import PROGRAM, Parser
from flair2_exp.config.tracking import PathsConfig
from flair2_exp.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Deliver, and print a line for each folder that lacked something.

    Returns:
        0, or 1 where something is still not delivered.

    Raises:
        FlairError: There is no such folder.
    """
    options = _parser().parse_args(list(arguments))
    folders = options.folders or _folders_of_results()
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder; name one of runs or of a sweep.")
    from flair2_exp.sweeps.delivery import Deliverer

    deliverer = Deliverer(options.tracking_uri)
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


def _folders_of_results() -> list[Path]:
    """Return where results are without being told, as far as there are any."""
    root = Path(os.environ.get("FLAIR2_EXP_ROOT") or ".")
    folders = (root / PathsConfig().output, root / "multirun")
    return [folder for folder in folders if folder.is_dir()]


def _parser() -> Parser:
    made = Parser(
        prog=f"{PROGRAM} deliver",
        description="Send what runs could not send to MLflow, and make runs and sweeps again that "
        "the store does not have: the folders are the truth, MLflow is a view of them.",
    )
    made.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="of a run, of a sweep, or of many "
        "(default: outputs and multirun)",
    )  # fmt: skip
    made.add_argument(
        "--tracking-uri", default="", metavar="URI",
        help="where to deliver (default: the store that each folder names)",
    )  # fmt: skip
    return made
