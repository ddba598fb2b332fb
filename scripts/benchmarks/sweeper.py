"""What the Optuna sweeper itself costs for each trial: `python scripts/benchmark.py sweeper`.

The objective is empty and the launcher returns at once, so what remains is the sweeper's: claim a
trial, draw six values, make the overrides, tell the result, all in a journal file on disk. What
Hydra needs to compose and run an empty job is shown beside it.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import Figure, report, this_machine

BOUND_MS: Final = 30.0
"""At most this per trial, so that a search of short jobs is not spent on bookkeeping."""
GROWTH: Final = 2.0
"""A late trial costs at most this times an early one: nothing may be quadratic in the trials."""
_KEYS: Final = tuple("abcdef")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status tells whether the bounds are kept."""
    parser = argparse.ArgumentParser(prog="benchmark.py sweeper", description=__doc__)
    parser.add_argument("--trials", type=int, default=600, help="trials of one study")
    parser.add_argument("--chunk", type=int, default=50, help="trials that make one sample")
    arguments = parser.parse_args(argv)
    machine = this_machine()
    with tempfile.TemporaryDirectory() as folder:
        samples = {
            sampler: _run(Path(folder) / sampler, sampler, arguments.trials, arguments.chunk)
            for sampler in ("random", "tpe")
        }
        hydra, _ = _run(Path(folder) / "hydra", "random", 20, 5, launcher="basic")
    random, random_busy = samples["random"]
    tpe, tpe_busy = samples["tpe"]
    half = len(random_busy) // 2  # by processor: the disk's moods are no growth
    growth = [b / a for a, b in zip(random_busy[:half], random_busy[half:], strict=False)]
    figures = [
        Figure("random sampler, per trial", random, BOUND_MS, unit="ms"),
        Figure("late trials over early ones", growth, GROWTH),
        Figure("TPE, per trial", tpe, BOUND_MS, unit="ms"),
        Figure("random sampler, processor time", random_busy, unit="ms"),
        Figure("TPE, processor time", tpe_busy, unit="ms"),
        Figure("with Hydra's basic launcher and an empty job, per trial", hydra, unit="ms"),
    ]
    facts = {
        "trials": arguments.trials,
        "parameters": len(_KEYS),
        "machine": machine,
    }
    return report("sweeper", figures, facts=facts)


def _run(
    folder: Path, sampler: str, trials: int, chunk: int, launcher: str = "none"
) -> tuple[list[float], list[float]]:
    """Return milliseconds per trial, by clock and by processor; a sample for each `chunk`."""
    from hydra import compose, initialize
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobReturn, JobStatus
    from omegaconf import OmegaConf

    from flair2_exp.compat import hydra_context
    from flair2_exp.optuna_sweeper.config import OptunaStudyConf
    from flair2_exp.optuna_sweeper.search import Search

    moments: list[tuple[float, float]] = []

    class NoLauncher:
        def launch(self, job_overrides: Sequence[Sequence[str]], **_: object) -> list[JobReturn]:
            moments.append((time.perf_counter(), time.process_time()))
            result = JobReturn(status=JobStatus.COMPLETED)
            result.return_value = 0.5
            return [result]

    def task(_: object) -> float:
        moments.append((time.perf_counter(), time.process_time()))
        return 0.5

    logging.disable(logging.INFO)
    with initialize(version_base="1.3", config_path=None):
        overrides = [f"+{key}=0.5" for key in _KEYS]
        overrides += ["hydra/sweeper=optuna_study", f"hydra/sweeper/sampler={sampler}"]
        overrides += [f"hydra.sweeper.n_trials={trials}", f"hydra.sweep.dir={folder}"]
        overrides += ["hydra.job.name=empty", "hydra.mode=MULTIRUN"]
        config = compose(overrides=overrides, return_hydra_config=True)
        options: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        loader = GlobalHydra.instance().config_loader()
        used: Any = NoLauncher()
        if launcher == "basic":
            used = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context(loader, config), task_function=task, config=config
            )
        Search(
            options=OptunaStudyConf(**options),
            config=config,
            launcher=used,
            config_loader=loader,
            arguments=[f"+{key}=interval(0,1)" for key in _KEYS],
        ).run()
    logging.disable(logging.NOTSET)
    # From the call of one job to that of the next: tell, claim, draw, launch.
    pairs = list(itertools.pairwise(moments[::chunk]))
    clock = [(after[0] - before[0]) / chunk * 1000 for before, after in pairs]
    return clock, [(after[1] - before[1]) / chunk * 1000 for before, after in pairs]
