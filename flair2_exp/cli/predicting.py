"""What the verbs that use trained networks have in common: which networks, how, and on what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from flair2_exp.cli import shown
from flair2_exp.cli.verbs import option
from flair2_exp.compat import import_torch
from flair2_exp.errors import UsageError
from flair2_exp.results.finding import results_root

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Predictor


def run_arguments(*, several: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a verb the arguments by which `predictor_of` finds networks.

    Args:
        several: Whether ensembles and test-time augmentation make sense to it.
    """
    network = partial(option, section="Network")
    added = [click.argument("run", required=not several, type=shown.PLACE)]
    if several:
        added += [
            network(
                "--ensemble", several=True, type=shown.PLACE, metavar="RUN...",
                help="Average several: runs, folders of runs, rows.",
            ),
            network(
                "--weights", several=True, type=float, metavar="W...",
                help="One for each of the ensemble (default: equal).",
            ),
            network(
                "--tta", type=click.Choice(("none", "flips", "d4")), default="none",
                help="Average over flips, or all eight symmetries.",
            ),
        ]  # fmt: skip
    added += [
        network("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:1."),
        network(
            "--tracking-uri", default="", metavar="URI",
            help="Store of a run's id or a row (default: local).",
        ),
    ]  # fmt: skip

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(added):
            function = add(function)
        return function

    return decorated


def predictor_of(options: SimpleNamespace) -> Predictor:
    """Load the networks that a command names.

    Raises:
        FlairError: It names none or both one and several, or they cannot be loaded.
    """
    ensemble: Sequence[str] = getattr(options, "ensemble", ())
    if bool(ensemble) == bool(options.run):
        raise UsageError("name a RUN, or several with --ensemble RUN RUN.")
    weights = getattr(options, "weights", ()) or None
    if weights and not ensemble:
        raise UsageError("--weights are of an --ensemble.")
    import_torch()
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
