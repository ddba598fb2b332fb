"""One job of a sweep or a search, as a launcher runs it, in this process or in another."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

log = logging.getLogger(__name__)


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
    from flair2_exp.engines.job import Submission, code_digest
    from flair2_exp.lifecycle.experiment import Membership, run
    from flair2_exp.lifecycle.folder import Footprint, RunFolder
    from flair2_exp.optuna_sweeper.trial import current_trial
    from flair2_exp.sweeps.parent import parent_of
    from flair2_exp.sweeps.tuning import PARENT, require_study_data
    from flair2_exp.tracking.tags import Tag

    streams.settle()  # a launcher may have started this process
    hydra = HydraConfig.get()
    make_sources_importable(hydra.runtime.config_sources)
    experiment, trial = typed(config), current_trial()
    folder = Path(hydra.runtime.output_dir)
    tags = {str(Tag.SWEEP): experiment.sweep.name}
    submission = Submission.read(RunFolder(folder))
    if submission is not None and submission.code not in ("", code_digest()):
        log.warning(
            "The code has changed since this job was submitted (%s, now %s): it runs as it is now.",
            submission.code,
            code_digest(),
        )
        tags[str(Tag.CODE_CHANGED)] = f"{submission.code} to {code_digest()}"
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
    before = Footprint(folder, base=Path(hydra.sweep.dir).absolute())  # by now Hydra has written
    return run(experiment, folder, list(hydra.overrides.task), membership, before)
