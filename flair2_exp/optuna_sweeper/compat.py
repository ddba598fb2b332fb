"""Names of Hydra and Optuna that are not public, each with the reason for its use.

Nothing else in this package uses such names; `tests/optuna_sweeper/test_compat.py` fails when one
of them changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from optuna.trial import FrozenTrial


def returned(job_return: JobReturn) -> Any:
    """Return what a job returned, or the exception that ended it.

    The public property `return_value` prints to the standard error and raises the exception, which
    a search only wants to look at: a failed trial is not the end of it.
    """
    return job_return._return_value


def queued_params(trial: FrozenTrial) -> Mapping[str, Any]:
    """Return the parameters that a trial was queued with, by `Study.enqueue_trial`.

    Optuna shows a trial's parameters once they are drawn. Those of a trial whose process died
    before that, which are to be tried again, stand in a system attribute alone.
    """
    params: Mapping[str, Any] = trial.system_attrs.get("fixed_params", {})
    return params
