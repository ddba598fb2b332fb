"""The folder of the config groups, and the names that an override may begin with."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import hints, is_group, options


def config_folder() -> Path:
    """Return the folder of the groups: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "conf"
    return beside if (beside / "config.yaml").is_file() else package / "conf"


def options_of(group: Path) -> list[str]:
    """Return the options of a group's folder, those of its subfolders as `leaderboard/utt`."""
    return sorted(str(each.relative_to(group).with_suffix("")) for each in group.rglob("*.yaml"))


def option_names() -> list[str]:
    """Return the dotted names of all options, nodes left out."""
    return [name for name, _ in options(Config)]


def single_values() -> frozenset[str]:
    """Return the dotted names of the options that are not mappings."""
    return frozenset(_single_values(Config, ""))


def _single_values(group: type, prefix: str) -> Iterator[str]:
    for name, hint in hints(group).items():
        if is_group(hint):
            yield from _single_values(hint, f"{prefix}{name}.")
        elif typing.get_origin(hint) is not Mapping and hint is not typing.Any:
            yield f"{prefix}{name}"


def top_level() -> list[str]:
    """Return what an override may begin with: the config's nodes and the groups' folders."""
    names = {name.split(".")[0] for name in option_names()}
    names |= {path.name for path in config_folder().iterdir() if path.is_dir()}
    return sorted(names)
