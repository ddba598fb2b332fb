"""What a job came to: its values, that it was pruned, why it failed, or that all shall end."""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

import optuna
from hydra.core.utils import JobReturn, JobStatus

from .compat import returned
from .config import OptunaStudyConf
from .storage import redact
from .trial import TrialPruned, UnknownObjective

_ENDS: Final = tuple(
    128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
)
"""Exit statuses of a process that was asked to end, as a shell gives them."""
_MOST_LETTERS: Final = 500  # of an error; a database's column holds 2048


def read_outcome(job_return: JobReturn, options: OptunaStudyConf) -> list[float] | str | None:
    """Return a job's values; in one line why it failed; or None if it was pruned.

    Raises:
        UnknownObjective: The job does not measure the objective.
    """
    if job_return.status == JobStatus.FAILED:
        if is_pruned(job_return):
            return None
        error = returned(job_return)
        if getattr(error, "unknown_objective", False):
            raise UnknownObjective(str(error))
        return one_line(error)
    if job_return.status != JobStatus.COMPLETED:
        return "the launcher returned no result"
    return read_values(job_return.return_value, options.objectives, len(options.directions))


def is_pruned(job_return: JobReturn) -> bool:
    """Return whether a job ended by saying that it was pruned."""
    return isinstance(returned(job_return), TrialPruned | optuna.TrialPruned)


def ending(error: object) -> BaseException | None:
    """Return what to end the command with where that was asked for, by Ctrl-C or SIGTERM.

    A framework may say so by another exception (Lightning turns Ctrl-C into `SystemExit`), whose
    context then still holds the interrupt.
    """
    each, seen = error, set[int]()
    while isinstance(each, BaseException) and id(each) not in seen:
        by_signal = isinstance(each, SystemExit) and each.code in _ENDS
        if by_signal or isinstance(each, KeyboardInterrupt):
            return each if by_signal and each is error else KeyboardInterrupt()
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return None


def one_line(error: BaseException) -> str:
    """Return an error in one line, without passwords."""
    text = " ".join(str(error).split())
    return redact(f"{type(error).__name__}: {text}"[:_MOST_LETTERS])


def read_values(value: object, names: Sequence[str], objectives: int) -> list[float] | str:
    """Return the values in a number, a list or a mapping; or in one line why there are none.

    Raises:
        UnknownObjective: The mapping lacks one of the names.
    """
    if isinstance(value, Mapping):
        if not names:
            return "the job returned a mapping; name the objective to pick from it"
        value = [_pick(value, name) for name in names]
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) != objectives:
        return f"the job returned {len(values)} values for {objectives} objectives"
    result = []
    for name, each in itertools.zip_longest(names, values, fillvalue="objective"):
        number = _number(each)
        if number is None:
            return f"{name}: the job returned no {'value' if each is None else 'number'}"
        if not math.isfinite(number):
            return f"{name}: the job returned {number}"
        result.append(number)
    return result


def _pick(values: Mapping[Any, Any], name: str) -> Any:
    if name not in values:
        near = difflib.get_close_matches(name, map(str, values), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        logged = ", ".join(map(str, values)) or "none"
        raise UnknownObjective(
            f"objective {name} is not among the values that the job returned{hint}: {logged}."
        )
    return values[name]


def _number(value: Any) -> float | None:
    """Return a number, or that in an array or tensor of one element; texts and bools are none."""
    if not isinstance(value, numbers.Real):
        try:
            value = value.item()
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return None
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if is_number else None
