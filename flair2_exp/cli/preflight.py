"""Refusing a command before anything is composed; nothing heavy is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from flair2_exp.cli.words import is_job
from flair2_exp.config.groups import single_values, top_level
from flair2_exp.errors import ConfigError


def preflight(flags: argparse.Namespace) -> None:
    """Refuse words that Hydra would take and that would not do what they say.

    Args:
        flags: The command line, as `words.parse` reads it.

    Raises:
        ConfigError: An option of another kind of command, or a sweeper that would ignore it.
    """
    _require_whole(flags.overrides)
    for override in flags.overrides:
        _require_plain(override)
        if override.startswith(("hydra.launcher=", "hydra.sweeper=")):
            fix = override.replace(".", "/", 1)
            raise ConfigError(f"{override}: a group's option is chosen with a slash: {fix}")
        _require_option(override)
    if "hydra/launcher=slurm" not in flags.overrides:
        for override in flags.overrides:
            if override.startswith("hydra/launcher/site="):
                raise ConfigError(f"{override} is for hydra/launcher=slurm: add that.")
    searches = any(override.startswith("tune=") for override in flags.overrides)
    if searches and any(override.startswith("sweep.dry_run=") for override in flags.overrides):
        raise ConfigError(
            "sweep.dry_run: a search finds its trials as it goes. Its space is shown by "
            "`--cfg all --package hydra.sweeper --resolve`."
        )
    _require_own_sweeper(flags.overrides, searches=searches)
    if flags.multirun or is_job(flags):
        return
    for override in flags.overrides:
        # Above all sweep.dry_run=true, which must not train.
        if override.startswith("sweep."):
            raise ConfigError(f"{override}: this is a single run; add sweep=NAME, or --multirun.")
        if override.startswith("tune."):
            raise ConfigError(f"{override}: this is a single run; add tune=NAME.")


def _require_whole(words: Sequence[str]) -> None:
    """Refuse a list that blanks have made several words of: the shell did that, and says nothing.

    Hydra's answer names the first of them, and a remedy that does not help.
    """
    for place, word in enumerate(words):
        whole = word.partition("=")[2]
        for end, rest in enumerate(words[place + 1 :], place + 2):
            if "=" in rest or not _is_open(whole):
                break
            whole += rest
            if not _is_open(whole):
                written = word.partition("=")[0] + "=" + whole
                raise ConfigError(
                    f"{' '.join(words[place:end])}: for the shell, a blank ends a word.\n"
                    f"Write it without blanks: {written}"
                )


def _is_open(text: str) -> bool:
    """Return whether a bracket or a brace of a text is not closed in it."""
    return any(text.count(left) > text.count(right) for left, right in ("[]", "{}"))


def _require_plain(override: str) -> None:
    """Refuse `+` and `~` before a group, and `~` before an option: all are there anyway."""
    sign, name = override[:1], override[1:].partition("=")[0]
    if sign not in ("+", "~"):
        return
    is_group = name in top_level() and name not in single_values()
    if sign == "+" and is_group and "=" in override:
        raise ConfigError(f"{override}: leave out the +: {override[1:]}")
    if sign == "~" and is_group:
        raise ConfigError(
            f"{override}: a group cannot be removed: omit this, or choose an option of "
            f"its group, {name}=NAME."
        )
    if sign == "~" and name in single_values():
        raise ConfigError(f"{override}: an option cannot be removed: omit it, or set {name}=VALUE.")


def _require_option(override: str) -> None:
    """Refuse a name below an option that holds one value: OmegaConf's answer does not name it."""
    key = override.partition("=")[0].lstrip("+~")
    node, dot, last = key.rpartition(".")
    if dot and node in single_values() and not last.isdecimal():  # an item of a list has a number
        raise ConfigError(f"{key}: no such option; write {node}=VALUE.")


def _require_own_sweeper(overrides: Sequence[str], *, searches: bool) -> None:
    """Refuse a sweeper that would not read the command's options, and so ignore a dry run."""
    chosen = [each.partition("=")[2] for each in overrides if each.startswith("hydra/sweeper=")]
    own = "optuna_study" if searches else "ablation"
    options = [each for each in overrides if each.startswith("tune=" if searches else "sweep")]
    if options and chosen and chosen[-1] != own:
        raise ConfigError(
            f"{options[0]} is for hydra/sweeper={own}, not for {chosen[-1]}: omit one of them."
        )
