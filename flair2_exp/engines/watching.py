"""Jobs that any process has started: where they are, and how to stop them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from flair2_exp.engines.engine import Engine
from flair2_exp.engines.job import Submission

ENGINES: Final = {
    "slots": ("flair2_exp.engines.slots:Slots", "SlotsConfig"),
    "slurm": ("flair2_exp.engines.slurm:Slurm", "SlurmConfig"),
    "ray": ("flair2_exp.engines.ray:Ray", "RayConfig"),
}
"""Each engine's class, imported when it is used, and that of its options, by its name."""


def build_engine(name: str, options: Any = None) -> Engine:
    """Return an engine.

    Args:
        name: Of the engine.
        options: Its group of `config.engines`; None: its defaults, for watching and stopping.

    Raises:
        FlairError: It cannot be used here.
    """
    place, group = ENGINES[name]
    module, _, attribute = place.partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    if options is None:
        options = getattr(importlib.import_module("flair2_exp.config.engines"), group)()
    engine: Engine = kind(options)
    return engine


UNKNOWN: Final = "unknown"


def states_of(jobs: Mapping[str, Submission], *, guess: bool = True) -> dict[str, str]:
    """Return where jobs are (`engine.QUEUED`, …), with one question to each engine.

    Args:
        jobs: By any key. Those of an engine that this version does not have are left out.
        guess: Where a cluster does not answer, its jobs are as they were last known, so that
            nothing is started twice; else they are UNKNOWN.

    Raises:
        FlairError: An engine does not answer.
    """
    states: dict[str, str] = {}
    for name, own in _by_engine(jobs).items():
        engine = build_engine(name)
        found = engine.states(own)
        states |= found if guess or not engine.silent else dict.fromkeys(own, UNKNOWN)
    return states


def stop(jobs: Mapping[str, Submission]) -> None:
    """Ask jobs to end with a checkpoint, and take queued ones back; do not wait.

    Raises:
        FlairError: An engine does not answer.
    """
    for name, own in _by_engine(jobs).items():
        build_engine(name).stop(own)


def _by_engine(jobs: Mapping[str, Submission]) -> dict[str, dict[str, Submission]]:
    engines: dict[str, dict[str, Submission]] = {}
    for key, job in jobs.items():
        if job.engine in ENGINES:
            engines.setdefault(job.engine, {})[key] = job
    return engines
