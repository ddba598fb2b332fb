"""What the Optuna sweeper itself costs for each trial: `python scripts/benchmark.py sweeper`.

The objective is empty and the launcher returns at once, so what remains is the sweeper's: claim a
trial, draw six values, make the overrides, tell the result, all in a journal file on disk. What
Hydra needs to compose and run an empty job is shown beside it.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

import flair2_exp.optuna_sweeper  # noqa: F401  registers the sweeper
from benchmarks.harness import Figure, ratios
from flair2_exp.compat import hydra_context
from flair2_exp.optuna_sweeper.config import OptunaStudyConf
from flair2_exp.optuna_sweeper.search import Search

ROUNDS: Final = (2, 11)
CHUNK: Final = 50
OPTIONS: Final = {"--chunk": {"type": int, "default": CHUNK, "help": "trials that make one sample"}}
BOUND_MS: Final = 30.0
"""At most this per trial, so that a search of short jobs is not spent on bookkeeping."""
GROWTH: Final = 2.0
"""A late trial costs at most this times an early one: nothing may be quadratic in the trials."""
_KEYS: Final = tuple("abcdef")


def measure(arguments: Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Measure trials with two samplers, and a few with Hydra's own launching."""
    rounds, chunk = arguments.rounds, arguments.chunk
    with tempfile.TemporaryDirectory() as folder:
        random, random_busy = _run(Path(folder) / "random", "random", rounds, chunk)
        tpe, tpe_busy = _run(Path(folder) / "tpe", "tpe", rounds, chunk)
        hydra, _ = _run(Path(folder) / "hydra", "random", 3, 5, launches=True)
    half = rounds // 2  # by processor: the disk's moods are no growth
    growth = ratios(random_busy[half : 2 * half], random_busy[:half])
    return [
        Figure("random sampler, per trial", random, BOUND_MS, unit="ms"),
        Figure("late trials over early ones", growth, GROWTH),
        Figure("TPE, per trial", tpe, BOUND_MS, unit="ms"),
        Figure("random sampler, processor time", random_busy, unit="ms"),
        Figure("TPE, processor time", tpe_busy, unit="ms"),
        Figure("with Hydra's basic launcher and an empty job, per trial", hydra, unit="ms"),
    ], {"trials": (rounds + 1) * chunk, "parameters": len(_KEYS)}


def _run(
    folder: Path, sampler: str, rounds: int, chunk: int, *, launches: bool = False
) -> tuple[list[float], list[float]]:
    """Return milliseconds per trial, by clock and by processor; a sample for each `chunk`."""
    moments: list[tuple[float, float]] = []

    def task(_: object) -> float:
        moments.append((time.perf_counter(), time.process_time()))
        return 0.5

    class NoLauncher:
        def launch(self, job_overrides: Sequence[Sequence[str]], **_: object) -> list[JobReturn]:
            result = JobReturn(status=JobStatus.COMPLETED)
            result.return_value = task(job_overrides)
            return [result]

    logging.disable(logging.INFO)
    with initialize(version_base="1.3", config_path=None):
        overrides = [f"+{key}=0.5" for key in _KEYS]
        overrides += ["hydra/sweeper=optuna_study", f"hydra/sweeper/sampler={sampler}"]
        overrides += [f"hydra.sweeper.n_trials={(rounds + 1) * chunk}", f"hydra.sweep.dir={folder}"]
        overrides += ["hydra.job.name=empty", "hydra.mode=MULTIRUN"]
        config = compose(overrides=overrides, return_hydra_config=True)
        options: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        loader = GlobalHydra.instance().config_loader()
        launcher: Any = NoLauncher()
        if launches:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context(loader, config), task_function=task, config=config
            )
        Search(
            options=OptunaStudyConf(**options),
            config=config,
            launcher=launcher,
            config_loader=loader,
            arguments=[f"+{key}=interval(0,1)" for key in _KEYS],
        ).run()
    logging.disable(logging.NOTSET)
    # From the call of one job to that of the next: tell, claim, draw, launch.
    pairs = itertools.pairwise(moments[::chunk])
    each = [[(b - a) / chunk * 1000 for a, b in zip(*pair, strict=True)] for pair in pairs]
    return [clock for clock, _ in each], [processor for _, processor in each]
