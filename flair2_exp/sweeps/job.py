"""One job of a sweep or a search, as a launcher runs it, in this process or in another."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def run_job_of_sweep(config: DictConfig) -> Any:
    """Check a composed config and run its experiment in Hydra's output folder.

    Args:
        config: Without Hydra's node, which Hydra has set for the job.

    Returns:
        The objective, a number or a list of numbers, for sweepers.
    """
    from hydra.core.hydra_config import HydraConfig

    from flair2_exp import streams
    from flair2_exp.config.compose import make_sources_importable, typed
    from flair2_exp.optuna_sweeper.trial import current_trial
    from flair2_exp.run.experiment import Membership, run
    from flair2_exp.run.folder import Footprint
    from flair2_exp.sweeps.parent import parent_of
    from flair2_exp.sweeps.tuning import PARENT, require_study_data
    from flair2_exp.tracking.tags import Tag

    streams.settle()  # a launcher may have started this process
    hydra = HydraConfig.get()
    make_sources_importable(hydra.runtime.config_sources)
    experiment, trial = typed(config), current_trial()
    tags = {str(Tag.SWEEP): experiment.sweep.name}
    if trial is None:
        membership = Membership(parent_of(Path(hydra.sweep.dir)), tags)
    else:
        tags |= {Tag.STUDY: trial.study_name, Tag.TRIAL: str(trial.number)}
        same_data = functools.partial(require_study_data, trial, experiment)
        membership = Membership(trial.study_attributes.get(PARENT), tags, trial, same_data)
        if not experiment.tracking.run_name:
            title = f"{trial.study_name} trial {trial.number}"
            tracking = dataclasses.replace(experiment.tracking, run_name=title)
            experiment = dataclasses.replace(experiment, tracking=tracking)
    folder = Path(hydra.runtime.output_dir)
    before = Footprint(folder, base=Path(hydra.sweep.dir).absolute())  # by now Hydra has written
    return run(experiment, folder, list(hydra.overrides.task), membership, before)
