"""Each name of another library that is not public still means what it did."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import optuna
import pytest
from hydra.core.utils import JobReturn, JobStatus

from flair2_exp.optuna_sweeper import compat

PACKAGE = Path(compat.__file__).parent
MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "compat.py")


@pytest.mark.parametrize("value", [0.5, None, KeyboardInterrupt(), ValueError("no good")])
def test_what_a_job_returned_or_raised_is_seen_without_raising_it(value: object) -> None:
    result = JobReturn()
    result.status = JobStatus.FAILED if isinstance(value, BaseException) else JobStatus.COMPLETED
    result.return_value = value  # as Hydra's run_job sets it
    assert compat.returned(result) is value


def test_the_parameters_of_a_queued_trial_are_seen_before_they_are_drawn() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.25})
    (queued,) = study.trials
    assert queued.params == {}
    assert compat.queued_params(queued) == {"x": 0.25}
    assert compat.queued_params(optuna.create_trial(value=1.0)) == {}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_other_module_reaches_for_a_private_name(path: Path) -> None:
    """Names of a module's own, behind `self`, are not meant."""
    tree = ast.parse(path.read_text())
    private = re.compile(r"_[a-z]\w*")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private.fullmatch(node.attr):
            assert ast.unparse(node.value) in ("self", "cls"), ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert not re.search(r"(^|\.)_[a-z]", node.module or ""), ast.unparse(node)
