"""The entry point: `flair2-exp`, or `python -m flair2_exp`.

Nothing heavy is imported before an experiment starts, so that help, completion, `--cfg job`, a dry
run and every mistake answer at once. A command composes once: what is checked is what runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp import __version__, streams
from flair2_exp.cli.verbs import COMPLETE, PROGRAM, RUN, verb_of
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.signals import Terminated, number_of, signals_as_exceptions

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig

    from flair2_exp.config.experiment import Config

JOB_NAME: Final = "flair2_exp"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what a command line asks for: a verb, or an experiment by Hydra's flags and overrides.

    Exit status: 0 done, 1 a mistake of the user's or a failed run, 2 a misused flag, 130
    interrupted, 143 terminated, 138 and 140 ended by SIGUSR1 and SIGUSR2, which do the same.

    Args:
        arguments: The command line without the program; None: this process's.
    """
    if arguments is None:
        streams.use_utf8()
        arguments = sys.argv[1:]
    streams.settle()
    if COMPLETE in os.environ:
        from flair2_exp.cli.completion import answer

        return answer(os.environ[COMPLETE])
    if list(arguments[:1]) == [RUN]:
        arguments = arguments[1:]
    works = False
    with explained():
        verb = verb_of(arguments)
        if verb is not None:
            sys.exit(verb(arguments[1:]) or streams.loss())
        works = not _answers_at_once(arguments) and bool(execute(arguments))
    if not works and (status := streams.loss()):
        sys.exit(status)


def _answers_at_once(arguments: Sequence[str]) -> bool:
    """Print help, version or completion; return whether that was all."""
    if {"--help", "-h"} & set(arguments) or list(arguments[:1]) == ["help"]:
        # Hydra's own help copies the schema for every group that it lists: two seconds.
        from flair2_exp.cli.help import help_text
        from flair2_exp.config.groups import config_folder

        print(help_text(config_folder(), arguments))
    elif "--version" in arguments:  # Hydra's parser would name its own
        print(f"{PROGRAM} {__version__}")
    else:
        return False
    return True


def execute(arguments: Sequence[str]) -> Path | bool:
    """Do what an experiment's command line says; its mistakes are raised as they come.

    Returns:
        The folder of a single run; of many, whether they were to run; False where the command only
        shows something.
    """
    from flair2_exp.cli.preflight import preflight
    from flair2_exp.cli.resume import resumed
    from flair2_exp.cli.words import parse, runs_nothing
    from flair2_exp.compat import files_checked, run_hydra_tool
    from flair2_exp.config.yaml_files import ConfigFiles
    from flair2_exp.projects import make_importable

    flags = parse(arguments)
    if flags.shell_completion:
        from flair2_exp.cli.completion import script

        print(script(flags.overrides[0].removeprefix("install=")), end="")
        return False
    if flags.hydra_help:
        flags.overrides.clear()  # of a command that somebody has half written
    stored = resumed(flags)
    if stored is not None:
        return stored.run(flags.overrides)
    preflight(flags)
    register()
    if flags.cfg and flags.multirun:
        _show_first_job(flags)
    for folder in (flags.config_dir, flags.config_path):
        if folder:
            make_importable(folder)
    with files_checked(ConfigFiles().check):
        if runs_nothing(flags):
            run_hydra_tool(flags, *_primary(flags))
            return False
        with signals_as_exceptions():
            return _run_many(flags) if flags.multirun else _run_one(flags)


def _show_first_job(flags: argparse.Namespace) -> None:
    """Let `--multirun --cfg` show the first of the jobs: Hydra shows only what is one job."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    chosen = []
    for place, word in enumerate(flags.overrides):
        override = OverridesParser.create().parse_override(word)
        if override.is_sweep_override() and not override.is_interval_sweep():
            first = next(override.sweep_string_iterator())
            flags.overrides[place] = f"{override.get_key_element()}={first}"
            chosen.append(flags.overrides[place])
    if chosen:
        print(f"{PROGRAM}: this is the first job, {' '.join(chosen)}", file=sys.stderr)
    flags.multirun = False


def register() -> None:
    """Make schema, resolvers and sweepers known to Hydra; that may be repeated.

    Each command does: where a launcher runs jobs in threads, Hydra starts its plugins anew, without
    those that were registered by hand.
    """
    from flair2_exp import optuna_sweeper
    from flair2_exp.config import compose
    from flair2_exp.engines import launcher
    from flair2_exp.sweeps import ablation

    # Hydra 1.4 and omegaconf 2.4 announce what their successors will drop; nothing a user can mend.
    notices = (
        "The version_base param", r"register_new_resolver\(\)", "Resolver 'widths_",
        "Hydra configured Python logging without",  # our formatter, which masks credentials
    )  # fmt: skip
    for notice in notices:
        warnings.filterwarnings("ignore", message=notice)
    warnings.filterwarnings("error", message="provider=hydra.searchpath")  # of a missing folder
    compose.register()
    ablation.register()
    launcher.register()
    optuna_sweeper.register()


def _primary(flags: argparse.Namespace) -> tuple[Path, str]:
    """Return the folder and name of the primary config: ours, or somebody's own tree."""
    from flair2_exp.config.groups import config_folder

    folder = Path(flags.config_path) if flags.config_path else config_folder()
    return folder, flags.config_name or "config"


def _run_one(flags: argparse.Namespace) -> Path:
    """Compose a single run, check it, and run it in Hydra's output folder; return that."""
    from hydra.types import RunMode

    from flair2_exp.cli.words import is_job
    from flair2_exp.compat import compose_whole, opened_hydra
    from flair2_exp.config.compose import as_hydra_runs, folder_of, typed

    folder, name = _primary(flags)
    words = list(flags.overrides)
    with opened_hydra(JOB_NAME, folder, flags.config_dir) as hydra:
        config = compose_whole(hydra, name, [*words, "hydra.mode=RUN"], RunMode.RUN)
        with as_hydra_runs(config, folder_of(config, "run.dir")):
            experiment = typed(config)
        return run_composed(hydra.config_loader, config, experiment, words, of_sweep=is_job(flags))


def run_composed(
    loader: ConfigLoader,
    config: DictConfig,
    experiment: Config,
    words: list[str],
    *,
    extended: bool = False,
    of_sweep: bool = False,
) -> Path:
    """Run an experiment in Hydra's output folder, with Hydra's log and files; return the folder.

    Args:
        loader: Hydra's.
        config: With Hydra's node.
        experiment: The same, checked.
        words: The command's overrides.
        extended: As of `lifecycle.experiment.run`.
        of_sweep: Whether it is one job of a sweep or a search.
    """
    from hydra.core.utils import JobStatus, run_job

    from flair2_exp.compat import hydra_context, outcome
    from flair2_exp.config.compose import folder_of
    from flair2_exp.lifecycle.experiment import run
    from flair2_exp.lifecycle.folder import Footprint, RunFolder, require_own, require_place
    from flair2_exp.ranks import rank_of

    output = folder_of(config, "run.dir")
    require_place(Path(output))
    run_folder = Path(output).absolute()  # before Hydra changes the folder, where asked to
    require_own(RunFolder(run_folder))
    rank = rank_of(experiment.trainer.devices, experiment.trainer.num_nodes)
    if not rank.first:  # which of Hydra's, too, is one process's to write
        os.environ.update(config.hydra.job.env_set)
        logging.basicConfig(level=logging.WARNING, format=f"process {rank.number}: %(message)s")
        run(experiment, run_folder, words, extended=extended)
        return run_folder
    before = Footprint.of(run_folder)

    def task(job: DictConfig) -> object:
        if of_sweep:
            from flair2_exp.sweeps.job import run_job_of_sweep

            return run_job_of_sweep(job)
        return run(experiment, run_folder, words, None, before, extended=extended)

    context, name = hydra_context(loader, config), config.hydra.job.config_name
    context.callbacks.on_run_start(config=config, config_name=name)
    try:
        job = run_job(task, config, "hydra.run.dir", None, context)
    except OSError:  # Hydra could not write its own files: the disk is full
        before.restore()
        raise
    except (KeyboardInterrupt, Terminated):
        if not of_sweep and not RunFolder(run_folder).record.exists():  # it had not begun
            before.restore()
        raise
    context.callbacks.on_run_end(config=config, config_name=name, job_return=job)
    if job.status == JobStatus.FAILED:
        error = outcome(job)
        if isinstance(error, FlairError) and not RunFolder(run_folder).record.exists():
            before.restore()  # Hydra 1.4 logs a refusal as a failed job
        raise error
    return run_folder


def _run_many(flags: argparse.Namespace) -> bool:
    """Compose a multirun and hand it to its sweeper, which checks every job.

    Return whether it was to run them, too.
    """
    from hydra.core.plugins import Plugins
    from hydra.types import RunMode

    from flair2_exp.compat import compose_whole, hydra_context, opened_hydra
    from flair2_exp.config.compose import JobLoader
    from flair2_exp.ranks import ranks_from_outside
    from flair2_exp.sweeps.job import run_job_of_sweep

    started = ranks_from_outside()
    if started is not None:
        raise ConfigError(
            f"{started.starter} has started this command {started.world} times, and each would run "
            "the whole sweep.\nStart it once: the processes of each job are started for it."
        )
    folder, name = _primary(flags)
    with opened_hydra(JOB_NAME, folder, flags.config_dir) as hydra:
        overrides = [*flags.overrides, "hydra.mode=MULTIRUN"]
        config = compose_whole(hydra, name, overrides, RunMode.MULTIRUN)
        _require_search(config, flags.overrides)
        context = hydra_context(JobLoader(hydra.config_loader), config)
        context.callbacks.on_multirun_start(config=config, config_name=name)
        sweeper = Plugins.instance().instantiate_sweeper(
            config=config, hydra_context=context, task_function=run_job_of_sweep
        )
        sweeper.sweep(arguments=list(config.hydra.overrides.task))
        context.callbacks.on_multirun_end(config=config, config_name=name)
        return not config.sweep.dry_run


def _require_search(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a search whose file leaves out what all searches have in common: `tune.*` is in it.

    Raises:
        ConfigError: It does.
    """
    chosen = [each for each in overrides if each.startswith("tune=")]
    if chosen and not config.hydra.sweeper.get("on_start"):
        raise ConfigError(
            f"{chosen[-1]}: its file leaves out what every search has in common: begin it with "
            "`defaults: [/hydra/tune/search, _self_]`."
        )


@contextmanager
def explained() -> Iterator[None]:
    """Turn a user's mistake into its message and the exit status; a bug keeps its traceback.

    Of several processes that srun or torchrun started, all may make the same mistake.
    """
    try:
        yield
    except Exception as error:
        from flair2_exp.config.explain import explain
        from flair2_exp.projects import format_exception, passed_own_code
        from flair2_exp.tracking.scrub import scrub

        message = explain(error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if message is None:
            if not passed_own_code(error):
                raise
            print(scrub(format_exception(error)), end="", file=sys.stderr)
            sys.exit(1)
        _refuse(message)
        sys.exit(error.status if isinstance(error, FlairError) else 1)
    except (KeyboardInterrupt, Terminated) as error:
        number = number_of(error)
        ended = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
        _refuse("; ".join((ended, *getattr(error, "__notes__", ()))))
        sys.exit(128 + number)


def _refuse(message: str) -> None:
    from flair2_exp.tracking.scrub import scrub

    print(f"{PROGRAM}: {scrub(message)}", file=sys.stderr)
