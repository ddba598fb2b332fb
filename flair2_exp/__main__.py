"""The entry point: `python -m flair2_exp`, or `flair2-exp` where the package is installed.

Nothing heavy is imported before an experiment starts, so that help, completion and `--cfg job`
answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flair2_exp.config import schema
from flair2_exp.errors import FlairError
from flair2_exp.signals import signals_as_exceptions

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_experiment(config: DictConfig) -> Any:
    """One job of Hydra: check the config, then run the experiment in Hydra's output folder.

    Returns:
        The objective, a number or a list of numbers, for sweepers.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from flair2_exp.run.experiment import run

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    typed, overrides = schema.typed(config), list(hydra_config.overrides.task)
    if hydra_config.mode == RunMode.MULTIRUN:
        from flair2_exp.optuna_sweeper.trial import current_trial
        from flair2_exp.sweeps.ablation import parent_of
        from flair2_exp.sweeps.tuning import PARENT

        tags, trial = {"flair2.sweep": typed.sweep.name}, current_trial()
        if trial is None:
            parent = parent_of(Path(hydra_config.sweep.dir))
        else:
            tags |= {"flair2.study": trial.study_name, "flair2.trial": str(trial.number)}
            parent = trial.study_attributes.get(PARENT)
            title = f"{trial.study_name} trial {trial.number}"
            typed.tracking.run_name = typed.tracking.run_name or title
        return run(typed, folder, overrides, parent_run_id=parent, tags=tags, reporter=trial)
    try:
        return run(typed, folder, overrides)
    except FlairError as error:
        _refuse(str(error))
        sys.exit(error.status)


def main() -> None:
    """Compose the config from the command line and run it; Hydra's own flags work as usual.

    Exit status: 0 done, 1 a mistake of the user's or a failed run, 2 a misused flag, 130
    interrupted, 143 terminated.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        # Hydra's own help copies the schema for every group that it lists: two seconds.
        from flair2_exp.cli.help import help_text

        print(help_text(schema.config_folder()))
        return
    if sys.argv[2:] in (["query=bash"], ["query=fish"]):
        from flair2_exp.cli.help import completions

        found = completions(schema.config_folder(), os.environ.get("COMP_LINE", ""))
        if found:
            print(("\n" if sys.argv[2] == "query=fish" else " ").join(found))
            return
    import hydra

    from flair2_exp import optuna_sweeper
    from flair2_exp.cli import words as command_line
    from flair2_exp.cli.preflight import preflight
    from flair2_exp.config.explain import explain
    from flair2_exp.sweeps import ablation

    # Hydra 1.4 and omegaconf 2.4 announce what their successors will drop; nothing a user can mend.
    for notice in ("The version_base param", r"register_new_resolver\(\)", "Resolver 'widths_"):
        warnings.filterwarnings("ignore", message=notice)
    schema.register()
    ablation.register()
    optuna_sweeper.register()
    # With this Hydra hands exceptions on instead of printing its own account and exiting.
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        asked = command_line.understood(sys.argv[1:])
        sys.argv[1:] = command_line.words(asked)
        preflight(asked)
        command = hydra.main(
            version_base="1.3", config_path=str(schema.config_folder()), config_name="config"
        )(run_experiment)
        with signals_as_exceptions():
            command()
    except BrokenPipeError:  # whoever reads our output, as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        message = explain(error)
        if message is None or full_error == "1":
            raise
        _refuse(message)
        sys.exit(error.status if isinstance(error, FlairError) else 1)
    except KeyboardInterrupt:
        _refuse("interrupted")
        sys.exit(130)


def _refuse(message: str) -> None:
    print(f"flair2-exp: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
