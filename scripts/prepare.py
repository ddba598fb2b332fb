"""Write a prepared store: patches decoded and series preprocessed once, for `dataset.store=STORE`.

python scripts/prepare.py STORE dataset=flair2 dataset.root=/data/flair2 s2_preproc=cloudfree

The overrides are those of the experiments that will read it. Called again, it resumes where it was
stopped and renews what has changed.
"""

from __future__ import annotations

import argparse
import sys
import time

from flair2_exp.cli.composed import composed
from flair2_exp.config.experiment import Config
from flair2_exp.streams import run


def main() -> int:
    """Compose the config, write the store and say what it took; 1 where it cannot be written."""
    parser = argparse.ArgumentParser(
        description="Write a prepared store, or finish or renew one.",
        epilog="OVERRIDES are Hydra's, as for python -m flair2_exp; s2_preproc and dataset matter.",
    )
    parser.add_argument("store", help="the store's folder")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("overrides", nargs="*", help="which data set and which preprocessing")
    arguments = parser.parse_intermixed_args()
    if "=" in arguments.store.partition("/")[0]:
        parser.error(f"name the store's folder first; {arguments.store} is an override")
    try:
        config = composed([*arguments.overrides, "dataset.store=null"])
        _prepare(arguments.store, config, max(1, arguments.workers))
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    except Exception as error:  # explain tells mistakes, Hydra's among them, from bugs
        from flair2_exp.config.explain import explain

        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def _prepare(store: str, config: Config, workers: int) -> None:
    """Write the store with a progress bar."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from flair2_exp.data.preparation import prepare, require_store_folder
    from flair2_exp.lifecycle.assembly import build_data

    require_store_folder(store)
    data = build_data(config)
    start = time.perf_counter()
    columns = (*Progress.get_default_columns()[:3], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("patches", total=len(data.index))
        done = prepare(
            data.source,
            store,
            series=data.series,
            workers=workers,
            on_damaged=config.dataset.on_damaged,
            progress=lambda count, _: bar.update(task, completed=count),
        )
    seconds = time.perf_counter() - start
    print(
        f"{done.patches} patches in {store}, {done.written} written now in {seconds:.1f} s, "
        f"{done.damaged} damaged, {done.incomplete} incomplete, {done.size / 1e6:.1f} MB. "
        f"Use it with dataset.store={store}"
    )


if __name__ == "__main__":
    run(main)
