"""A Hydra sweeper for today's Optuna: pruning, resume and a study shared by many workers.

Importing this package registers `hydra/sweeper=optuna_study`. It uses Hydra and Optuna alone and
imports itself by relative names, so that the folder can be copied into any Hydra application:

    import flair2_exp.optuna_sweeper  # before hydra.main composes

    # conf/config.yaml
    defaults:
      - override hydra/sweeper: optuna_study
    hydra:
      sweep:
        dir: multirun/search  # no time in it, unlike Hydra's default: the same command resumes
      sweeper:
        n_trials: 40
        params:
          lr: tag(log,interval(1e-5,1e-1))
          model: choice(small,large)

    # in a shell
    python app.py --multirun

The options stand in `config.OptunaStudyConf`, the grammar of a search space in `space`. A job
returns its objective; it reports on its way, and learns whether to stop, through
`trial.current_trial()`.
"""

from __future__ import annotations

from .errors import SweepError
from .plugin import register

__all__ = ["SweepError", "register"]

register()
