"""From a job's overrides to its command: what `python -m flair2_exp` composes as the job's config.

A multirun's command says how its jobs run (`hydra/launcher=…`) and over what it sweeps; a job's own
says `--run`, so that `sweep=NAME` and `tune=NAME` are composed and start nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from flair2_exp.config.experiment import Config
from flair2_exp.config.groups import config_folder
from flair2_exp.engines.job import JobCommand
from flair2_exp.lifecycle.folder import RunFolder

_OF_MANY: Final = (
    "hydra.mode", "hydra.launcher", "hydra.sweeper", "hydra.run", "hydra.sweep.subdir"
)  # fmt: skip
"""Nodes whose options are of the whole multirun, or are given anew."""


def command_of(
    master: DictConfig,
    config: Config,
    overrides: Sequence[str],
    folder: RunFolder,
    number: int,
    title: str = "",
) -> JobCommand:
    """Return the command of one job of a multirun.

    Args:
        master: The multirun's config, with Hydra's node.
        config: The job's, checked.
        overrides: The job's, as its sweeper composes it.
        folder: Where it runs, absolute.
        number: Of the job.
        title: What it is called in queues; empty: by its sweep, row and seed.
    """
    trainer = config.trainer
    words = [
        "--run",
        *_sources(master),
        *_of_hydra(master),
        *overrides,
        *_names(overrides, config),
        f"hydra.run.dir={quoted(str(folder.path))}",
        f"hydra.job.num={number}",
    ]
    on_gpu = trainer.accelerator not in ("cpu", "mps")
    return JobCommand(
        number,
        title or f"{config.sweep.name}/{config.name}/seed={config.seed}",
        folder,
        tuple(words),
        Path(str(master.hydra.runtime.cwd)),
        gpus=float(trainer.devices) if on_gpu else 0.0,
        processes=trainer.devices,
        nodes=trainer.num_nodes,
        workers=config.data.workers,
        test=config.test,
        root=Path(str(master.hydra.sweep.dir)).absolute(),
    )


def quoted(text: str) -> str:
    """Return a text as a value of Hydra's grammar."""
    return str(QuotedString(text, Quote.single).with_quotes())


def _sources(master: DictConfig) -> Iterator[str]:
    """Yield the flags that lead to further config files."""
    for source in master.hydra.runtime.config_sources:
        if source.schema != "file":
            continue
        if source.provider == "command-line":
            yield from ("--config-dir", source.path)
        elif source.provider == "main" and Path(source.path).resolve() != config_folder().resolve():
            yield from ("--config-path", source.path)
    if str(master.hydra.job.config_name) != "config":
        yield from ("--config-name", str(master.hydra.job.config_name))


def _of_hydra(master: DictConfig) -> Iterator[str]:
    """Yield the overrides of Hydra's own node that hold for a job as well."""
    # As they were written: an interpolation is for the job to resolve.
    written: Any = OmegaConf.to_container(master.hydra.overrides.hydra, resolve=False)
    for override in written:
        key = str(override).partition("=")[0].lstrip("+~")
        if key != "hydra/sweeper" and key.replace("/", ".").startswith(_OF_MANY):
            continue
        yield str(override)


def _names(overrides: Sequence[str], config: Config) -> Iterator[str]:
    """Yield the sweep's name, which has the time in it unless somebody gave one."""
    if not any(override.startswith("sweep.name=") for override in overrides):
        yield f"sweep.name={quoted(config.sweep.name)}"
