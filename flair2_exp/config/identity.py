"""A run's identity: a hash of what decides its result, and of nothing else.

Two configs that would train the same model on the same data have the same identity however they are
written; a changed learning rate, quirk or split gives another. By it a sweep knows which of its
runs are done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from flair2_exp import __version__
from flair2_exp.config import schema
from flair2_exp.config.schema import Config

_VOLATILE: Final = (
    # where things are and how they are shown
    "paths", "tracking", "name", "objective", "compat", "quirk", "sweep", "tune", "test",
    "callbacks.name", "callbacks.progress", "callbacks.panel_patches", "callbacks.save_minutes",
    # how fast
    "data.workers", "trainer.threads", "trainer.log_every_n_steps",
    "trainer.accelerator", "trainer.strategy", "utae.checkpointing", "model.compile",
    "model.channels_last",
    # names of group files whose values are all here themselves
    "data.name", "data.satellite", "dataset.name", "s2_preproc.name", "aug.name", "metadata.name",
)  # fmt: skip
"""Options, or whole nodes, that do not decide the result."""

_PLACES: Final = tuple(
    f"dataset.{item.name}"
    for item in dataclasses.fields(schema.DatasetConfig)
    if item.name not in ("name", "on_damaged")
)
"""Where the data are: the fingerprint says which they are."""

_IRRELEVANT: Final = (*_VOLATILE, *_PLACES)


def decides(option: str) -> bool:
    """Whether an option, by its dotted name, decides what a run's result is.

    Where things are, how they are shown and how fast they are do not; the data's fingerprint, not
    their place, says which they are.
    """
    return not _is_within(option, _IRRELEVANT)


def _is_within(option: str, nodes: Iterable[str]) -> bool:
    """Whether an option is one of these, or in one of these nodes."""
    return any(option == node or option.startswith(f"{node}.") for node in nodes)


def deciding(config: Config, fingerprint: str, version: str = __version__) -> dict[str, Any]:
    """What decides a run's result, by dotted name.

    The batch size is that of all devices together: two devices with batches of 5 train as one with
    10. Nodes that the model does not use are left out.

    Args:
        config: A checked config.
        fingerprint: Of the data set's files and split (`FlairDataModule.fingerprint`).
        version: Of the package.
    """
    idle = (*_IRRELEVANT, *_unused(config))
    every = _flatten(dataclasses.asdict(config))
    values = {name: value for name, value in every if not _is_within(name, idle)}
    devices = values.pop("trainer.devices") * values.pop("trainer.num_nodes")
    values["data.batch_size"] *= abs(devices)  # -1, all devices, is not known before the run
    values["metadata.enabled"] = config.metadata.enabled
    return {**values, "fingerprint": fingerprint, "version": version}


def identity(config: Config, fingerprint: str, version: str = __version__) -> str:
    """The identity of a run: 16 hexadecimal digits, of SHA-256 over `deciding`."""
    return digest(deciding(config, fingerprint, version))


def digest(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of SHA-256 over plain values, whatever their order and spelling."""
    text = json.dumps({key: _canonical(value) for key, value in values.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two `deciding`s, a line each: `optimizer.lr: 0.001 -> 0.01`."""
    return [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted({*before, *now})
        if _canonical(before.get(name)) != _canonical(now.get(name))
    ]


def _unused(config: Config) -> list[str]:
    """Nodes and options of the config that this experiment does not read."""
    unused = [] if schema.reads_satellite(config) else ["utae", "fusion", "s2_preproc"]
    if config.model.name == "utae":
        unused += ["fusion"]
    if not config.metadata.enabled:
        unused += ["metadata"]
    if not config.train:
        unused += ["optimizer", "scheduler", "aug", "trainer.max_epochs"]
    return unused


def _flatten(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values; a mapping's entries are values of their own."""
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, Mapping):
            found += _flatten(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _canonical(value: Any) -> Any:
    """Numbers as floats, so that 1 and 1.0 are one; sequences as lists."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _canonical(each) for key, each in value.items()}
    return [_canonical(each) for each in value]
