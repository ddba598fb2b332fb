"""`flair2-exp prepare`: patches decoded and series preprocessed once, for `dataset.store=STORE`."""

from __future__ import annotations

import sys
import time

import click

from flair2_exp.cli.composed import composed, overrides_arguments
from flair2_exp.cli.progress import progress
from flair2_exp.cli.verbs import option, verb
from flair2_exp.compat import import_torch
from flair2_exp.errors import UsageError


@verb(
    "prepare",
    usage="STORE [OVERRIDES]... [OPTIONS]",
    examples="""
    flair2-exp prepare stores/mine dataset=sample s2_preproc=cloudfree
    flair2-exp prepare stores/mine dataset=flair2 dataset.root=FOLDER --workers 8
    """,
)
@click.argument("store", type=click.Path())
@overrides_arguments
@option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="Processes.",
)  # fmt: skip
def command(store: str, overrides: tuple[str, ...], config_dir: str | None, workers: int) -> None:
    """Write a prepared store, or finish or renew one: epochs then read no TIFF and no series.

    OVERRIDES are those of the experiments that will read it; dataset and s2_preproc matter. Called
    again, it resumes where it was stopped and renews what has changed.
    """
    if "=" in store.partition("/")[0]:
        raise UsageError(f"name the store's folder first; {store} is an override.")
    config = composed([*overrides, "dataset.store=null"], config_dir)
    from flair2_exp.data.preparation import prepare, require_store_folder
    from flair2_exp.lifecycle.assembly import build_data

    require_store_folder(store)
    import_torch()
    data = build_data(config)
    start = time.perf_counter()
    try:
        with progress("patches") as report:
            done = prepare(
                data.source,
                store,
                series=data.series,
                workers=workers,
                on_damaged=config.dataset.on_damaged,
                progress=report,
            )
    except KeyboardInterrupt:
        print("stopped; the same command resumes.", file=sys.stderr)
        raise
    seconds = time.perf_counter() - start
    print(
        f"{done.patches} patches in {store}, {done.written} written now in {seconds:.1f} s, "
        f"{done.damaged} damaged, {done.incomplete} incomplete, {done.size / 1e6:.1f} MB. "
        f"Use it with dataset.store={store}"
    )
