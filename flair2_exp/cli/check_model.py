"""`python -m flair2_exp check-model`: does a network keep the contract?"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from flair2_exp.cli.composed import composed
from flair2_exp.cli.verbs import PROGRAM, Parser

if TYPE_CHECKING:
    from flair2_exp.models.check import Finding

_COLOURS: Final = {"passed": "green", "failed": "red", "note": ""}


def main(arguments: Sequence[str]) -> int:
    """Check the network that a run with these overrides would train, and print what was found.

    Returns:
        0, or 1 where a check fails.

    Raises:
        FlairError: The overrides are wrong.
    """
    options = _parser().parse_intermixed_args(list(arguments))
    config = composed(options.overrides, options.config_dir)
    from flair2_exp.lifecycle.assembly import foreseen_network
    from flair2_exp.models.check import check_network

    spec, _ = foreseen_network(config)
    findings = check_network(
        spec, precision=config.trainer.precision, compare=not options.no_compare
    )
    if options.json:
        print(json.dumps([dataclasses.asdict(each) for each in findings], indent=2))
    else:
        _print(config.model.name, findings)
    return int(any(each.outcome == "failed" for each in findings))


def _print(name: str, findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found", title=f"model={name}", title_justify="left")
    for each in findings:
        outcome = Text(each.outcome, style=_COLOURS[each.outcome])
        table.add_row(each.check, outcome, Text(f"{each.text} {each.fix}".rstrip()))
    Console(file=sys.stdout).print(table)


def _parser() -> Parser:
    made = Parser(
        prog=f"{PROGRAM} check-model",
        description="Build a network on the processor and try it on random batches: shapes, "
        "gradients, independence of the batch and of padding, checkpoint, time and memory beside "
        "U-T&T's. Nothing is read or downloaded.",
        epilog=f"Example: {PROGRAM} check-model --config-dir my_study/conf model=my_net",
    )
    made.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="of a run, as model=unet preset=tiny; "
        "dataset.sample.patch_size=64 makes it quicker",
    )  # fmt: skip
    made.add_argument("--config-dir", metavar="FOLDER", help="with further config files")
    made.add_argument("--no-compare", action="store_true", help="leave U-T&T out")
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return made
