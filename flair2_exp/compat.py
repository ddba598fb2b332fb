"""Private names of other libraries: the only place where they are used, each with its reason.

`tests/test_compat.py` fails when one of them changes. The Optuna sweeper, which can be copied into
other projects, has a module of this kind of its own.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, cast

from flair2_exp.signals import held_back

if TYPE_CHECKING:  # whoever needs one library's names does not load the others
    import torch
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from hydra.core.utils import JobReturn
    from hydra.plugins.config_source import ConfigResult, ConfigSource
    from hydra.plugins.launcher import Launcher
    from hydra.types import HydraContext, RunMode
    from lightning import Trainer
    from omegaconf import DictConfig
    from torch.utils.data import DataLoader

log = logging.getLogger(__name__)

# --- Hydra --------------------------------------------------------------------------------------


class HydraApp(Protocol):
    """What is used of Hydra's application object."""

    config_loader: ConfigLoader

    def compose_config(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        with_log_configuration: bool = False,
    ) -> DictConfig:
        """Compose a command's config."""
        ...


def hydra_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's flags.

    `hydra.main` parses `sys.argv` by itself, with a usage text for every mistake; there is no
    public access to its parser.
    """
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


@contextmanager
def opened_hydra(job_name: str, config_path: Path, config_dir: str | None) -> Iterator[HydraApp]:
    """Open Hydra as its entry point does, with the folder of `--config-dir` in the search path.

    `hydra.initialize_config_dir` knows no second folder and no job name of a main program, and
    `hydra.main` composes and runs in one go, so that nothing can be refused before it makes a
    folder (https://github.com/facebookresearch/hydra/issues/1011 asks for a compose in between).

    Args:
        job_name: What `hydra.job.name` falls back to.
        config_path: The folder of the primary config.
        config_dir: The folder of `--config-dir`, or None.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.3")
    search_path = create_config_search_path(str(config_path.absolute()))
    if config_dir:
        url = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", url, SearchPathQuery(provider="schema"))
    try:
        yield cast(HydraApp, Hydra.create_main_hydra2(job_name, search_path))
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def files_checked(check: Callable[[str, Path], None]) -> Iterator[None]:
    """Call `check` with the name and path of each config file before Hydra reads it.

    Hydra takes files in at several places (`--config-dir`, `--config-path`, `hydra.searchpath`),
    all by one class. It is not public, and the registry of such classes takes no second one for
    files.

    Args:
        check: Raises where Hydra is not to read the file.
    """
    from hydra._internal.sources_registry import SourcesRegistry

    # Not by its name: Hydra executes its plugins' modules again when it starts them anew.
    source: Any = SourcesRegistry.instance().resolve("file")
    load = source.load_config

    def checked(self: ConfigSource, config_path: str) -> ConfigResult:
        name = config_path.removesuffix(".yaml")
        path = Path(self.path, f"{name}.yaml").resolve()
        if path.exists():
            check(name, path)
        return cast("ConfigResult", load(self, config_path))

    source.load_config = checked
    try:
        yield
    finally:
        source.load_config = load


def run_hydra_tool(flags: argparse.Namespace, config_path: Path, config_name: str) -> None:
    """Let Hydra answer the flags that run nothing: `--cfg`, `--info`, `--hydra-help`, completion.

    The public `hydra.main` would parse `sys.argv` again, which here holds other words.
    """
    from hydra import version
    from hydra._internal.utils import _run_hydra

    version.setbase("1.3")
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it then raises, instead of printing a traceback itself
    try:
        _run_hydra(
            args=flags,
            args_parser=hydra_parser(),
            task_function=_nothing,
            config_path=str(config_path.absolute()),
            config_name=config_name,
        )
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def hydra_completions(hydra: HydraApp, config_name: str, line: str) -> list[str]:
    """Return the words that Hydra offers for the last override of a line.

    Its plugins for shells print them, in a form for the functions that they install.
    """
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    plugin = DefaultCompletionPlugin(hydra.config_loader)
    return plugin._query(config_name=config_name, line=line)


def _nothing(config: DictConfig) -> None:
    """Stand in for a job where none is run."""


def hydra_context(loader: ConfigLoader, config: DictConfig) -> HydraContext:
    """Return what sweepers and jobs get: the loader, and the callbacks of the config."""
    from hydra._internal.callbacks import Callbacks
    from hydra.types import HydraContext

    return HydraContext(config_loader=loader, callbacks=Callbacks(config))


def split_sweep(overrides: Sequence[Override]) -> list[tuple[str, ...]]:
    """Return the jobs of a command's overrides, in the order of Hydra's basic sweeper.

    The product and its order are a static method of a class that is not public.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (batch,) = BasicSweeper.split_arguments(list(overrides), max_batch_size=None)
    return [tuple(job) for job in batch]


def is_basic_launcher(launcher: Launcher) -> bool:
    """Return whether a launcher is Hydra's own, which runs one job after the other in-process."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    return type(launcher) is BasicLauncher


def outcome(job: JobReturn) -> Any:
    """Return what a job returned or raised.

    The public property `return_value` prints to the terminal and raises.
    """
    return job._return_value


# --- Networks and their checkpoints -------------------------------------------------------------


def shared_storage(size: int) -> torch.UntypedStorage:
    """Return fresh shared memory of `size` bytes, uninitialised.

    It is what torch's own `default_collate` fills in a worker. The public way, `share_memory_`,
    makes private memory first and copies it.
    """
    import torch

    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return storage


@contextmanager
def counting_memory() -> Iterator[Callable[[], int]]:
    """Count the bytes of the tensors that are made within this context.

    torch counts them on GPUs alone; its profiler does on processors, but takes seconds to start and
    writes to standard error. Operations are watched as torch's notes on extending it describe, from
    a module with an underscore (https://docs.pytorch.org/docs/stable/notes/extending.html).

    Yields:
        A function that returns the most bytes that were taken at once. What an operation needs
        within itself is not seen.
    """
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    alive: dict[int, int] = {}
    peak = 0

    def storages(values: Any) -> dict[int, torch.UntypedStorage]:
        flat = [one for each in values for one in (each if isinstance(each, list) else [each])]
        found = [each.untyped_storage() for each in flat if isinstance(each, torch.Tensor)]
        return {each.data_ptr(): each for each in found}

    class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal peak
            output = func(*args, **(kwargs or {}))
            made = storages(output if isinstance(output, tuple | list) else (output,))
            for place in made.keys() - storages(args).keys() - alive.keys():
                alive[place] = made[place].nbytes()
                weakref.finalize(made[place], alive.pop, place, None).atexit = False
            peak = max(peak, sum(alive.values()))
            return output

    with Watching():  # type: ignore[no-untyped-call]
        yield lambda: peak


def end_process(status: object) -> NoReturn:
    """End this process as at its end: threads are waited for, exit handlers run, streams flushed.

    Only Python's last step is left out. It takes apart all modules and objects one by one: 1.3 s
    with torch, Lightning and MLflow, and some of their extensions complain there of what was not.
    The two functions that it calls before have no public names.

    Args:
        status: As of `SystemExit`: None and 0 are success, a text is printed.
    """
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status or 0)


def compose_whole(
    hydra: HydraApp, name: str, overrides: list[str], mode: RunMode, *, log_config: bool = True
) -> DictConfig:
    """Compose a config with Hydra's own node.

    A signal raises afterwards: omegaconf makes errors of its own of an exception within it.
    """
    with held_back():
        return hydra.compose_config(name, overrides, mode, log_config)


def import_torch() -> None:
    """Import torch, and say so: from a cold or distant disk that takes a minute.

    A signal raises afterwards, since torch's C++ aborts within or forgets it.
    """
    if "torch" not in sys.modules:
        log.info("loading torch, Lightning and MLflow")
    with held_back():
        import torch  # noqa: F401


def has_workers(loader: DataLoader[Any]) -> bool:
    """Return whether a loader's persistent workers are running.

    Workers inherit what is there when they start; torch says nowhere publicly when that is.
    """
    return loader._iterator is not None


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's persistent workers, if they are running; the next epoch starts others.

    Torch does it where the iterator is dropped. But one that an exception's traceback holds is
    dropped by Python's garbage collection, which takes the queues to the workers away first: torch
    then waits five seconds for each worker before it kills it.
    """
    iterator: Any = loader._iterator
    loader._iterator = None
    if hasattr(iterator, "_shutdown_workers"):  # not without workers
        iterator._shutdown_workers()


COMPILED_PREFIX: Final = "_orig_mod."
"""What `torch.compile(module)` puts before the module's names in a state_dict. Torch offers nothing
to take it off; people publish weights of compiled networks."""


def epochs_trained(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs a checkpoint of Lightning's had trained.

    Its `epoch` is that of the batch it was written after, whether that epoch was complete or not;
    only the loops' own progress tells.

    Raises:
        KeyError: It holds no state of a training.
    """
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def within_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint of Lightning's was written between two batches of an epoch.

    Only the loops' own progress tells.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return bool(progress["current"]["ready"]) and not progress["is_last_batch"]


def stopped_early(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether Lightning's `EarlyStopping` had ended the training of a checkpoint.

    0 is its word for "not stopped"; whatever derives from it keeps the name.
    """
    states = checkpoint.get("callbacks", {}).values()
    return any(state.get("stopped_epoch", 0) for state in states)


def leave_the_cluster_alone(trainer: Trainer) -> None:
    """Let a trainer neither handle signals nor take up checkpoints that it was not given.

    Lightning's handler of SIGTERM starts a collective operation, whatever the process was at, and
    ends the training without a checkpoint; each batch of several devices begins with asking the
    first one whether that has happened. And where the environment has a SLURM job, a fresh training
    starts from any `hpc_ckpt_N.ckpt` in its folder, also one that another job's requeueing left
    behind. No argument turns these off.

    Args:
        trainer: Before it trains.
    """
    connector = trainer._checkpoint_connector
    connector.__class__ = type("OwnCheckpoints", (type(connector),), {"_hpc_resume_path": None})
    signals: Any = trainer._signal_connector
    signals.register_signal_handlers = _nothing_to_do
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = _nothing_to_do


def _nothing_to_do() -> None:
    """Stand in for what Lightning is not to do."""


# --- MLflow -------------------------------------------------------------------------------------

MLFLOW_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)
"""The tables and columns of MLflow's database that hold absolute places of artifacts. Nothing in
its interface changes them, so that a store that has moved keeps writing where it was
(github.com/mlflow/mlflow/issues/3144)."""
