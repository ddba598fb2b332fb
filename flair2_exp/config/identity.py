"""A run's identity: a hash of what decides its result, and of nothing else.

Two configs that would train the same network on the same data have the same identity however they
are written; a changed learning rate, quirk or split gives another. By it a sweep knows which of its
runs are done. Whether an option decides, and where, is declared with it (`config.fields.option`).
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Final

from flair2_exp import __version__, projects
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import defaults, options, plain
from flair2_exp.values import differences, digest, flatten

UNKNOWN_DATA: Final = ""
"""Stands for the fingerprint of data that are not known yet."""

_OPTIONS: Final = dict(options(Config))
_DEFAULTS: Final = flatten(dict(defaults(Config)))
_MAIN: Final = frozenset({
    "name", "seed", "dataset.name", "split.name", "data.name", "s2_preproc.name", "aug.name",
    "metadata.name", "model.name", "model.encoder", "loss.name", "optimizer._target_",
    "optimizer.lr", "scheduler.name", "data.batch_size", "trainer.max_epochs", "compat",
})  # fmt: skip
"""What every run is compared by, at its default too."""
_FOLLOWING: Final = frozenset({"model.reads", "model.nodes", "data.bands", "dataset.root"})
"""What the data set and the network's name say already."""
_UNDECIDING: Final = frozenset(name for name, decides in _OPTIONS.items() if decides is False)


def decides(option: str) -> bool:
    """Return whether an option, by its dotted name, decides what some run's result is.

    Where things are, how they are shown and how fast they are do not; the data's fingerprint, not
    their place, says which they are.
    """
    return not _is_within(option, _UNDECIDING)


def _is_within(option: str, names: Set[str]) -> bool:
    """Return whether an option is one of these, or within one of these nodes."""
    while option and option not in names:
        option = option.rpartition(".")[0]
    return bool(option)


def deciding(config: Config, fingerprint: str, version: str = __version__) -> dict[str, Any]:
    """Return what decides a run's result, by dotted name.

    Batch sizes are per device, and `trainer.devices` counts those of all machines: batches are
    normalised on each device, so that 2 x 5 patches are not 1 x 10. Files of weights count by their
    content, and so does a user's own code that `_target_` names. What the experiment does not use
    is left out.

    Args:
        config: The experiment's.
        fingerprint: Of the data set's files and split (`data.fingerprint`).
        version: Of the package.
    """
    idle = {
        name
        for name, decides in _OPTIONS.items()
        if not (decides(config) if callable(decides) else decides)
    }
    every = flatten(plain(config)) | contents(config)
    values = {name: value for name, value in every.items() if not _is_within(name, idle)}
    nodes = values.pop("trainer.num_nodes", None)
    if nodes is not None:  # -1 devices, all of a machine, is not known before the run
        values["trainer.devices"] = abs(values["trainer.devices"]) * nodes
    return {**values, **_own_code(values), "fingerprint": fingerprint, "version": version}


def outline(config: Config) -> dict[str, Any]:
    """Return the few options that tell a run from others, by dotted name.

    Those that every run is compared by, and those that decide this run's result and are not at
    their default. A class's path is left out where its group's name says which one it is.
    """
    every = flatten(plain(config))
    decided = deciding(config, UNKNOWN_DATA).keys() & every.keys()
    changed = differences(_DEFAULTS, every).keys() & decided
    named = {f"{name.removesuffix('.name')}._target_" for name in every if name.endswith(".name")}
    empty = {name for name, value in every.items() if value in ({}, [])}
    kept = _MAIN | (changed - named - empty - _FOLLOWING)
    return {name: value for name, value in every.items() if name in kept}


def _own_code(values: Mapping[str, Any]) -> dict[str, str]:
    """Return digests of the user's code that decides, by package, as `code.my_study`."""
    targets = [str(value) for name, value in values.items() if _names_a_class(name)]
    return {f"code.{package}": each for package, each in projects.digests(targets).items()}


def own_code(config: Config) -> dict[str, Path]:
    """Return the files of the user's code that a config names, as `my_study/nets.py`, sorted."""
    named = [str(value) for name, value in flatten(plain(config)).items() if _names_a_class(name)]
    files: dict[str, Path] = {}
    for path in named:
        files |= projects.code_of(path)
    return dict(sorted(files.items()))


def _names_a_class(option: str) -> bool:
    return option.rpartition(".")[2] == "_target_"


def identity(config: Config, fingerprint: str, version: str = __version__) -> str:
    """Return the identity of a run: 16 hexadecimal digits, of SHA-256 over `deciding`."""
    return digest(deciding(config, fingerprint, version))


def contents(config: Config) -> dict[str, str]:
    """Return the digests of the files of weights that a config names, by option.

    A file that is not there (it may lie on a cluster's disks) is left out, so that its path counts.
    """
    named = {
        "model.weights": config.model.weights,
        "model.encoder_weights": config.model.encoder_weights,
        "checkpoint": config.checkpoint,
    }
    files = {name: Path(path) for name, path in named.items() if path}
    return {name: _digest_of(path) for name, path in files.items() if path.is_file()}


def _digest_of(path: Path) -> str:
    state = os.stat(path)
    return _digest_of_state(path, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=64)
def _digest_of_state(path: Path, *state: int) -> str:
    """Return the digest of a file, read once per process while its state stays."""
    del state
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
