"""`flair2-exp check-model`: does a network keep the contract?"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from flair2_exp.cli.composed import composed, overrides_arguments
from flair2_exp.cli.verbs import option, verb
from flair2_exp.compat import import_torch

if TYPE_CHECKING:
    from flair2_exp.models.check import Finding

_COLOURS: Final = {"passed": "green", "failed": "red", "note": ""}


@verb(
    "check-model",
    examples="""
    flair2-exp check-model --config-dir my_study/conf model=my_net
    flair2-exp check-model model=unet --no-compare   # quicker
    """,
)
@overrides_arguments
@option("--no-compare", is_flag=True, help="Leave U-T&T out.")
@option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    overrides: tuple[str, ...], config_dir: str | None, no_compare: bool, as_json: bool
) -> int:
    """Build a network on the processor and try it on random batches.

    It tells shapes, gradients, independence of the batch and of padding, checkpoint, time and
    memory beside U-T&T's. Nothing is read or downloaded. The exit status is 1 where a check fails.
    """
    config = composed(overrides, config_dir)
    import_torch()
    from flair2_exp.lifecycle.assembly import foreseen_network
    from flair2_exp.models.check import check_network

    spec, _ = foreseen_network(config)
    findings = check_network(spec, precision=config.trainer.precision, compare=not no_compare)
    if as_json:
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
