"""`python -m flair2_exp stats`: what the training patches are like, computed once and kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flair2_exp.cli.composed import composed
from flair2_exp.cli.progress import progress
from flair2_exp.cli.verbs import PROGRAM, Parser

if TYPE_CHECKING:
    from flair2_exp.data.normalisation import Moments
    from flair2_exp.data.statistics import Statistics


def main(arguments: Sequence[str]) -> int:
    """Print the statistics of the training patches that a run with these overrides would use.

    Returns:
        0.

    Raises:
        FlairError: The overrides are wrong, or the data cannot be read.
    """
    options = _parser().parse_intermixed_args(list(arguments))
    config = composed(options.overrides, options.config_dir)
    from flair2_exp.lifecycle.assembly import build_data, require_files

    require_files(config)  # before torch is imported
    from flair2_exp.data import statistics

    data = build_data(config, parts=("train",))
    with progress("training patches") as report:
        computed = statistics.of(data, progress=report)
    if options.json:
        print(computed.text(), end="")
    else:
        _print(computed)
    return 0


def _print(computed: Statistics) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    damaged = f", {computed.damaged} damaged ones left out" if computed.damaged else ""
    console.print(f"{computed.patches} training patches{damaged}", highlight=False)
    grids = {"aerial band, 0..1": computed.image, "satellite band, scaled": computed.series}
    for title, moments in grids.items():
        if moments is not None:
            console.print(_bands(title, moments))
    table = Table("class", "pixels", "share")
    total = sum(computed.pixels.values())
    for name, count in computed.pixels.items():
        table.add_row(name, f"{count:,}", f"{count / total:.2%}")
    console.print(table)


def _bands(title: str, moments: Moments) -> object:
    from rich.table import Table

    table = Table(title, "mean", "standard deviation")
    for band, mean, std in zip(moments.bands, moments.mean, moments.std, strict=True):
        table.add_row(band, f"{mean:.4f}", f"{std:.4f}")
    return table


def _parser() -> Parser:
    made = Parser(
        prog=f"{PROGRAM} stats",
        description="Mean and standard deviation of each band, and pixels of each class, of the "
        "training patches. They are computed once and kept with the data; data.normalisation, "
        "s2_preproc.normalisation and loss.class_weighting use them.",
        epilog=f"Example: {PROGRAM} stats dataset=flair2 dataset.root=/data/flair2 model=utt "
        "data.workers=8",
    )
    made.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="of a run, as dataset=flair2 "
        "split=official data.bands=[nir,green,red]",
    )  # fmt: skip
    made.add_argument("--config-dir", metavar="FOLDER", help="with further config files")
    made.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return made
