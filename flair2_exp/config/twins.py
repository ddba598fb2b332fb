"""The twins of all groups (`fields.composable`), found by name: here pickle looks for them."""

from __future__ import annotations

from flair2_exp.config import experiment, fields


def __getattr__(name: str) -> type:
    """Return the twin of the group of that name."""
    groups = [experiment.Config]
    for group in groups:
        if group.__name__ == name:
            return fields.composable(group)
        groups += [hint for hint in fields.hints(group).values() if fields.is_group(hint)]
    raise AttributeError(f"there is no config group {name}")
