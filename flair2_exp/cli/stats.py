"""`flair2-exp stats`: what the training patches are like, computed once and kept."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from flair2_exp.cli.composed import composed, overrides_arguments
from flair2_exp.cli.progress import progress
from flair2_exp.cli.verbs import option, verb
from flair2_exp.compat import import_torch

if TYPE_CHECKING:
    from flair2_exp.data.normalisation import Moments
    from flair2_exp.data.statistics import Statistics


@verb(
    "stats",
    examples="""
    flair2-exp stats dataset=flair2 dataset.root=/data/flair2 data.workers=8
    flair2-exp stats data.bands=[nir,green,red] --json
    """,
)
@overrides_arguments
@option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(overrides: tuple[str, ...], config_dir: str | None, as_json: bool) -> None:
    """Print mean and deviation of each band, and pixels of each class, of the training patches.

    They are those of a run with these OVERRIDES, computed once and kept with the data;
    data.normalisation, s2_preproc.normalisation and loss.class_weighting use them.
    """
    config = composed(overrides, config_dir)
    from flair2_exp.lifecycle.assembly import build_data, require_files

    require_files(config)
    import_torch()
    from flair2_exp.data import statistics

    data = build_data(config, parts=("train",))
    with progress("training patches") as report:
        computed = statistics.of(data, progress=report)
    if as_json:
        print(computed.text(), end="")
    else:
        _print(computed)


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
