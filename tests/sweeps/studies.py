"""Studies made by hand."""

from __future__ import annotations

from pathlib import Path

import optuna

from flair2_exp.optuna_sweeper.results import SearchResult, best_trials
from flair2_exp.optuna_sweeper.space import read_space
from flair2_exp.optuna_sweeper.storage import open_storage


def made_result(folder: Path, trials: int) -> SearchResult:
    """Return a result over two objectives, whose front all trials share."""
    name = str(folder / "optuna.journal")
    folder.mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name="s", storage=open_storage(name), directions=["maximize", "minimize"],
        load_if_exists=True,
    )  # fmt: skip
    for number in range(trials):
        study.add_trial(
            optuna.create_trial(
                values=[float(number), float(number)],
                params={"seed": number},
                distributions={"seed": optuna.distributions.IntDistribution(0, 9)},
            )
        )
    space = read_space({"seed": "range(0,10)"}, [], None)
    return SearchResult(study, study.trials, best_trials(study), ("a", "b"), folder, space, True)
