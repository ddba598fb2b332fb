"""A Hydra sweeper for today's Optuna: pruning, resume and a study shared by many workers.

Importing this package registers `hydra/sweeper=optuna_study`. It uses Hydra and Optuna
alone, so the folder serves any Hydra application:

    import flair2_exp.sweeps.optuna_sweeper  # before hydra.main composes

A job reports on its way, and learns whether to stop, through `trial.current_trial()`.
"""

from __future__ import annotations

from flair2_exp.sweeps.optuna_sweeper.errors import SweepError
from flair2_exp.sweeps.optuna_sweeper.plugin import register

__all__ = ["SweepError", "register"]

register()
