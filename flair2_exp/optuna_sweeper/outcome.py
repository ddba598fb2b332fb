"""What a job came to: its values, that it was pruned, why it failed, or that all shall end."""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import optuna
from hydra.core.utils import JobReturn, JobStatus

from .compat import returned
from .config import OptunaStudyConf
from .storage import redact
from .trial import TrialPruned, UnknownObjective

_ENDS: Final = (128 + signal.SIGINT, 128 + signal.SIGTERM)
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


def ending_of(job_return: JobReturn) -> BaseException | None:
    """Return what ended a job, where it means that the whole command shall end."""
    error = returned(job_return) if job_return.status == JobStatus.FAILED else None
    return error if is_end(error) else None


def is_end(error: object) -> bool:
    """Return whether a job ended because the whole command shall: by Ctrl-C or SIGTERM.

    A framework may say so by another exception (Lightning turns Ctrl-C into `SystemExit`), whose
    context then still holds the interrupt.
    """
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        if isinstance(error, SystemExit) and error.code in _ENDS:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def end_as(error: BaseException) -> NoReturn:
    """End the command as it was asked to."""
    if isinstance(error, SystemExit) and error.code in _ENDS:
        raise error
    raise KeyboardInterrupt


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
