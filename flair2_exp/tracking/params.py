"""A nested config as MLflow parameters: flat names that MLflow takes, values a user can read back.

MLflow takes names of at most 250 characters out of a small alphabet and values of at most 6000.
Nothing is lost to that silently: names stay distinct, and a longer value says where it goes on.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

NAME_LIMIT: Final = 250
VALUE_LIMIT: Final = 6000
"""MLflow's limits (mlflow.utils.validation), the same since 2.8."""

_FORBIDDEN: Final = re.compile(r"[^\w\-./: ]")


def flatten(config: Mapping[Any, Any]) -> dict[str, Any]:
    """All leaves of a nested mapping under dotted names.

    Args:
        config: Nested mappings with plain values. Lists count as leaves, and so does an empty
            mapping, so that an option set to nothing is still seen.

    Returns:
        As many entries as there are leaves, in the order of `config`. Should two leaves get the
        same dotted name (`{"a.b": 1, "a": {"b": 2}}`), the later one gets `_2` behind it.
    """
    flat: dict[str, Any] = {}

    def visit(node: Mapping[Any, Any], prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping) and value:
                visit(value, f"{name}.")
                continue
            number, candidate = 1, name
            while candidate in flat:
                number += 1
                candidate = f"{name}_{number}"
            flat[candidate] = value

    visit(config, "")
    return flat


def valid_name(name: str) -> str:
    """The name itself where MLflow takes it, else the nearest one that it takes.

    Characters outside letters, digits and ``_ - . / :`` and blank become ``_``; a name that is no
    clean relative path loses its slashes; one that is too long ends in a hash of the whole.
    """
    valid = _FORBIDDEN.sub("_", name)
    if posixpath.normpath(valid) != valid or valid.startswith((".", "/")):
        valid = valid.replace("/", "_")
        valid = f"_{valid[1:]}" if valid in ("", ".", "..") or valid.startswith("..") else valid
    return valid if len(valid) <= NAME_LIMIT else _hashed(valid, name)


def _hashed(valid: str, name: str) -> str:
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    return f"{valid[: NAME_LIMIT - 9]}_{digest}"


def valid_names(names: Iterable[str]) -> dict[str, str]:
    """For each of `names` (all different) a name that MLflow takes, all different again."""
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        valid = valid_name(name)
        if valid in taken:
            valid = _hashed(valid, name)
        taken.add(valid)
        chosen[name] = valid
    return chosen


def render(value: object) -> str:
    """A value as in an override: `null`, `true`, `0.001`, `["red", "green"]`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def shorten(text: str, pointer: str, limit: int = VALUE_LIMIT) -> str:
    """The text itself, or its start with a note on where the whole of it is.

    Args:
        text: A value of any length.
        pointer: The artifact that holds the whole text.
        limit: The most characters the result may have.

    Returns:
        At most `limit` characters. The note holds a hash of the whole text, so that two long
        values are equal here exactly if they are equal.
    """
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]
    note = f" … [{len(text)} characters, sha256 {digest}, all in artifact {pointer}]"
    return text[: limit - len(note)] + note
