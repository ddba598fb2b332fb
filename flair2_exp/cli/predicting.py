"""What the verbs that use trained networks have in common: which networks, how, and on what."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flair2_exp.errors import UsageError

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Predictor


def add_run_arguments(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    """Add the arguments by which `predictor_of` finds its networks.

    Args:
        parser: Of a verb.
        several: Whether ensembles and test-time augmentation make sense to it.
    """
    parser.add_argument(
        "run", nargs="?" if several else None, metavar="RUN",
        help="a run's folder, its checkpoint, or the id of its MLflow run",
    )  # fmt: skip
    group = parser.add_argument_group("network")
    if several:
        group.add_argument(
            "--ensemble", nargs="+", metavar="RUN", default=[],
            help="several in the place of RUN, their probabilities averaged: runs, folders with "
            "runs below, or names of leaderboard rows",
        )  # fmt: skip
        group.add_argument(
            "--weights", nargs="+", type=float, metavar="W", help="one of each run; default: equal"
        )
        group.add_argument(
            "--tta", choices=("none", "flips", "d4"), default="none",
            help="test-time augmentation: average over flips, or all eight symmetries",
        )  # fmt: skip
    group.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:1"
    )
    group.add_argument(
        "--tracking-uri", default="", metavar="URI",
        help="the MLflow store that knows a run's id or a row (default: the local one)",
    )  # fmt: skip


def predictor_of(options: argparse.Namespace) -> Predictor:
    """Load the networks that a command names.

    Raises:
        FlairError: It names none or both one and several, or they cannot be loaded.
    """
    ensemble: Sequence[str] = getattr(options, "ensemble", [])
    if bool(ensemble) == bool(options.run):
        raise UsageError("name a RUN, or several with --ensemble RUN RUN.")
    weights = getattr(options, "weights", None)
    if weights is not None and not ensemble:
        raise UsageError("--weights are of an --ensemble.")
    from flair2_exp.inference.stored import StoredRun

    uri = options.tracking_uri
    if ensemble:
        from flair2_exp.inference.ensemble import runs_of

        runs = runs_of(ensemble, results_root(), uri)
    else:
        runs = [StoredRun.find(options.run, uri)]
    from flair2_exp.inference.predictor import Predictor

    symmetries = getattr(options, "tta", "none")
    return Predictor(runs, weights=weights, symmetries=symmetries, device=options.device)


def results_root() -> Path:
    """Return below which folder results are: `paths.root`'s default."""
    return Path(os.environ.get("FLAIR2_EXP_ROOT") or ".")


def command_line(verb: str, arguments: Sequence[str]) -> str:
    """Return the command as it was given, without credentials, for what it leaves."""
    from flair2_exp.tracking.scrub import scrub

    return scrub(shlex.join(["flair2-exp", verb, *arguments]))
