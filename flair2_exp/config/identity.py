"""A run's identity: a hash of what decides its result, and of nothing else.

Two configs that would train the same network on the same data have the same identity however they
are written; a changed learning rate, quirk or split gives another. By it a sweep knows which of its
runs are done. Which options decide is declared with each option (`config.fields.option`).
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from flair2_exp import __version__
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import hints, is_group, options, plain
from flair2_exp.values import digest, flatten

UNKNOWN_DATA: Final = ""
"""Stands for the fingerprint of data that are not known yet."""

_OPTIONS: Final = dict(options(Config))
_UNDECIDING: Final = [name for name, decides in _OPTIONS.items() if not decides]
_OF_NETWORKS: Final = [
    name for name, hint in hints(Config).items() if is_group(hint) and hint.of_network
]
"""Nodes that hold options of some networks; which, a network's file says."""
_OF_THE_AERIAL_BRANCH: Final = ("model.encoder", "model.encoder_weights", "model.decoder_channels")


def decides(option: str) -> bool:
    """Return whether an option, by its dotted name, decides what a run's result is.

    Where things are, how they are shown and how fast they are do not; the data's fingerprint, not
    their place, says which they are.
    """
    return not _is_within(option, _UNDECIDING)


def _is_within(option: str, names: Iterable[str]) -> bool:
    """Return whether an option is one of these, or within one of these nodes."""
    return any(option == name or option.startswith(f"{name}.") for name in names)


def deciding(config: Config, fingerprint: str, version: str = __version__) -> dict[str, Any]:
    """Return what decides a run's result, by dotted name.

    The batch size is that of all devices together: two devices with batches of 5 train as one with
    10. Files of weights count by their content. What the experiment does not use is left out.

    Args:
        config: The experiment's.
        fingerprint: Of the data set's files and split (`data.fingerprint`).
        version: Of the package.
    """
    idle = (*_UNDECIDING, *_unused(config))
    every = flatten(plain(config)) | contents(config)
    values = {name: value for name, value in every.items() if not _is_within(name, idle)}
    devices = values.pop("trainer.devices") * values.pop("trainer.num_nodes")
    values["data.batch_size"] *= abs(devices)  # -1, all devices, is not known before the run
    values["metadata.enabled"] = config.metadata.enabled
    return {**values, "fingerprint": fingerprint, "version": version}


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


def _unused(config: Config) -> list[str]:
    """Return nodes and options of the config that this experiment does not read."""
    unused = [name for name in _OF_NETWORKS if name not in config.model.nodes]
    if "satellite" not in config.reads:
        unused += ["s2_preproc"]
    if "aerial" not in config.reads:
        unused += [*_OF_THE_AERIAL_BRANCH, "data.bands"]
    if not config.metadata.enabled:
        unused += ["metadata"]
    if not config.train:
        unused += ["optimizer", "scheduler", "aug", "trainer.max_epochs"]
    return unused
