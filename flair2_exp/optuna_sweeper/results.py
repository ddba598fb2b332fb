"""What a search came to, and what it leaves behind: its result and a table of its trials."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from .ledger import FAILURE, LOST, WITHDRAWN
from .space import Space
from .study import RETRY_OF


@dataclass(frozen=True)
class SearchResult:
    """What a search came to, for `on_finish`.

    Attributes:
        study: The study, as Optuna has it.
        trials: All its trials at the end of the search, by number.
        best: The best of them, or the Pareto front.
        objective: The objectives' names; empty where the job returns its value without a name.
        folder: Where results go: the sweep's folder, or the one of a study opened beside another.
        space: Turns a trial's parameters into its overrides, and knows the config groups.
        leader: Whether this worker should do what is to be done once: it ended the last trial, or
            found the study complete, and no other process is doing it.
    """

    study: optuna.Study
    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial]
    objective: tuple[str, ...]
    folder: Path
    space: Space
    leader: bool

    @property
    def names(self) -> tuple[str, ...]:
        """What to call the objectives, also where they have no names."""
        return self.objective or tuple(f"value_{i}" for i in range(len(self.study.directions)))


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the complete trials that no other beats in all objectives; of one, the best alone.

    They stand by the first objective, best first; of equal ones the earlier comes first.
    """
    signs = [1.0 if each == StudyDirection.MINIMIZE else -1.0 for each in study.directions]

    def rank(trial: FrozenTrial) -> tuple[list[float], int]:
        return [s * v for s, v in zip(signs, trial.values, strict=True)], trial.number

    front = sorted(study.best_trials, key=rank)
    return front[:1] if len(signs) == 1 else front


def write_results(result: SearchResult) -> None:
    """Write `optimization_results.yaml`, as Hydra's own sweepers do, and `trials.csv`."""
    best, objectives = result.best, len(result.names)
    content: dict[str, Any] = {"name": "optuna", "study": result.study.study_name}
    if objectives > 1:
        content["solutions"] = [
            {"params": t.params, "values": list(t.values), "trial": t.number} for t in best
        ]
    elif best:
        content |= {"best_params": best[0].params, "best_value": best[0].values[0]}
        content["best_trial"] = best[0].number
    _replace(result.folder / "optimization_results.yaml", OmegaConf.to_yaml(content))
    write_table(result.folder / "trials.csv", result.trials, objectives)


def write_table(path: Path, trials: Sequence[FrozenTrial], objectives: int) -> None:
    """Write one line per trial: state, values, times, parameters, and why it failed."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    values = ["value"] if objectives == 1 else [f"value_{i}" for i in range(objectives)]
    head = ["number", "state", *values, "steps", "start", "seconds", RETRY_OF, FAILURE]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*head, *names])
    for trial in trials:
        row: list[Any] = [trial.number, state_name(trial), *(trial.values or [""] * objectives)]
        row += [len(trial.intermediate_values), trial.datetime_start, _seconds(trial)]
        row += [trial.user_attrs.get(key, "") for key in (RETRY_OF, FAILURE)]
        writer.writerow(row + [trial.params.get(name, "") for name in names])
    _replace(path, text.getvalue())


def state_name(trial: FrozenTrial) -> str:
    """Return a trial's state in lower case; `lost` and `withdrawn` are kinds of failed trials."""
    name = trial.state.name.lower()
    marks = [mark for mark in (LOST, WITHDRAWN) if mark in trial.user_attrs]
    return marks[0] if marks and name == "fail" else name


def _seconds(trial: FrozenTrial) -> float | str:
    return "" if trial.duration is None else round(trial.duration.total_seconds(), 3)


@contextlib.contextmanager
def only_one(folder: Path, name: str = ".finishing") -> Iterator[bool]:
    """Yield whether no other process is in this context for the folder; a killed one leaves it.

    Args:
        folder: Made where it is missing.
        name: Of a file in it: there is a context for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:  # a file system without locks
            yield True
        else:
            yield True


def _replace(path: Path, text: str) -> None:
    """Write a file in one step: other workers, on other machines too, write the same one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(text.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
