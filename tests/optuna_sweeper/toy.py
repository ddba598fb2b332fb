"""A search without Hydra's composition, and a small Hydra application for whole processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial

from flair2_exp.optuna_sweeper.config import OptunaStudyConf
from flair2_exp.optuna_sweeper.process import Process
from flair2_exp.optuna_sweeper.search import Search
from flair2_exp.optuna_sweeper.storage import open_storage
from flair2_exp.optuna_sweeper.trial import VARIABLE

Task = Callable[[dict[str, Any]], Any]

ELSEWHERE = replace(Process.this(), host="elsewhere").plain()
"""A process of another machine, of which nothing is known here."""

RANDOM = {"_target_": "optuna.samplers.RandomSampler", "seed": 3}
GRID = {"_target_": "optuna.samplers.GridSampler"}
NO_PRUNER = {"_target_": "optuna.pruners.NopPruner"}


class Launcher:
    """Runs the task on the parsed overrides, as Hydra's basic launcher would."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.batches: list[list[int]] = []
        self.folders: list[str] = []

    def launch(self, overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        returns = []
        self.batches.append([initial_job_idx + i for i in range(len(overrides))])
        for texts in overrides:
            config, environment = {}, {}
            for override in OverridesParser.create().parse_overrides(list(texts)):
                key = override.get_key_element()
                if key.startswith("hydra.job.env_set."):
                    environment[key.rpartition(".")[2]] = str(override.value())
                elif key == "hydra.sweep.subdir":
                    self.folders.append(str(override.value()))
                else:
                    config[key] = override.value()
            returns.append(self._run(config, environment))
        return returns

    def _run(self, config: dict[str, Any], environment: dict[str, str]) -> JobReturn:
        result = JobReturn(status=JobStatus.COMPLETED)
        os.environ.update(environment)
        try:
            result.return_value = self.task(config)
        except Exception as error:
            result.status = JobStatus.FAILED
            result.return_value = error
        finally:
            os.environ.pop(VARIABLE, None)
        return result


class Loader:
    """Composes nothing and knows the groups it is given."""

    def __init__(self, groups: dict[str, list[str]] | None = None) -> None:
        self.groups = groups or {}

    def load_sweep_config(self, _: DictConfig, __: list[str]) -> None:
        return None

    def get_group_options(self, group_name: str, **_: Any) -> list[str]:
        return self.groups.get(group_name, [])


def make_search(
    folder: Path,
    task: Task,
    *arguments: str,
    launcher: Launcher | None = None,
    groups: dict[str, list[str]] | None = None,
    **options: Any,
) -> Search:
    # Beats and looks at the study as fast as a test can wait for.
    quick: dict[str, Any] = {
        "sampler": RANDOM,
        "pruner": NO_PRUNER,
        "poll": 0.02,
        "study_name": "toy",
    }
    config = OmegaConf.create(
        {
            "hydra": {
                "sweep": {"dir": str(folder), "subdir": "run_${hydra.job.num}"},
                "job": {"name": "toy"},
                "overrides": {"hydra": []},
            }
        }
    )
    return Search(
        options=OptunaStudyConf(**{**quick, **options}),
        config=config,
        launcher=launcher or Launcher(task),  # type: ignore[arg-type]
        config_loader=Loader(groups),  # type: ignore[arg-type]
        arguments=arguments,
    )


def run_search(folder: Path, task: Task, *arguments: str, **options: Any) -> list[FrozenTrial]:
    """Run a search to its end, and return the study's trials."""
    make_search(folder, task, *arguments, **options).run()
    name = options.get("storage") or str(folder / "optuna.journal")
    return trials_of(name, options.get("study_name", "toy"))


def trials_of(storage_name: str, study_name: str) -> list[FrozenTrial]:
    storage = open_storage(storage_name)
    return storage.get_all_trials(storage.get_study_id_from_name(study_name))


def states(trials: Sequence[FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]


# Evaluates a parabola and writes one line an evaluation, which proves what ran; whoever makes the
# study's parent writes one, too. A file `hold<pid>` makes a process stand still in the middle of a
# trial, where a test can kill it; it answers with `holding<pid>`. SIGTERM is an exception in a
# trial, as in an experiment of this package; Ctrl-C is turned into an exit, as Lightning does.
APP = """
import os, signal, sys, time
from pathlib import Path
import hydra
from hydra.core.config_store import ConfigStore
import flair2_exp.optuna_sweeper

HERE = Path(__file__).parent
ConfigStore.instance().store("config", {
    "x": 0.0, "seconds": 0.0,
    "defaults": ["_self_", {"override hydra/sweeper": "optuna_study"},
                 {"override hydra/sweeper/sampler": "random"}],
})

def make_parent(config):
    with open(HERE / "parents", "a") as file:
        file.write(f"{os.getpid()}\\n")
    return {"parent": os.getpid()}

@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    with open(HERE / "evaluated", "a") as file:
        file.write(f"{os.getpid()} {cfg.x!r}\\n")
    time.sleep(cfg.seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while (HERE / f"hold{os.getpid()}").exists():
            (HERE / f"holding{os.getpid()}").touch()
            time.sleep(0.01)
    except KeyboardInterrupt:
        sys.exit(1)
    return (cfg.x - 0.3) ** 2

if __name__ == "__main__":
    main()
"""
