"""Stub until the integrator's: what predict, submit and export have in common."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flair2_exp.errors import UsageError

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Predictor


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN and the options of how its networks predict."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="folder, checkpoint or MLflow run id")
    parser.add_argument("--ensemble", nargs="+", metavar="RUN", help="average several instead")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="one of each")
    parser.add_argument("--tta", choices=("none", "flips", "d4"), default="none", help="symmetries")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--tracking-uri", default="", metavar="URI", help="that knows the run id")


def predictor_of(options: argparse.Namespace) -> Predictor:
    """Return the predictor of a verb's options."""
    from flair2_exp.inference.predictor import Predictor

    if bool(options.run) == bool(options.ensemble):
        raise UsageError("name one run, or several with --ensemble.")
    return Predictor.from_runs(
        options.ensemble or [options.run],
        weights=options.weights,
        tta=options.tta,
        device=options.device,
        tracking_uri=options.tracking_uri,
    )
