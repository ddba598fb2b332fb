"""Names and values that MLflow takes: distinct names, and long values that say where the rest is.

MLflow takes names of at most 250 characters out of a small alphabet and values of at most 6000.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable
from typing import Final

NAME_LIMIT: Final = 250
VALUE_LIMIT: Final = 6000
"""MLflow's limits (mlflow.utils.validation), the same since 2.8."""

_FORBIDDEN: Final = re.compile(r"[^\w\-./: ]")


def valid_name(name: str) -> str:
    """Return the name itself where MLflow takes it, else the nearest one that it takes.

    Characters outside letters, digits and ``_ - . / :`` and blank become ``_``; a name that is not
    a clean relative path loses its slashes; one that is too long ends in a hash of the whole.
    """
    valid = _FORBIDDEN.sub("_", name)
    if posixpath.normpath(valid) != valid or valid.startswith((".", "/")):
        valid = valid.replace("/", "_")
        valid = f"_{valid[1:]}" if valid in ("", ".", "..") or valid.startswith("..") else valid
    return valid if len(valid) <= NAME_LIMIT else _hashed(valid, name)


def valid_names(names: Iterable[str]) -> dict[str, str]:
    """Return for each of `names` (all different) a name that MLflow takes, all different again."""
    chosen: dict[str, str] = {}
    for name in names:
        valid = valid_name(name)
        chosen[name] = _hashed(valid, name) if valid in chosen.values() else valid
    return chosen


def _hashed(valid: str, name: str) -> str:
    return f"{valid[: NAME_LIMIT - 9]}_{_digest(name)[:8]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def shorten(text: str, pointer: str, limit: int = VALUE_LIMIT) -> str:
    """Return the text itself, or its start with a note on where the whole of it is.

    Returns:
        At most `limit` characters. The note holds a hash of the whole text, so that two long
        values are equal here exactly if they are equal.
    """
    if len(text) <= limit:
        return text
    digest = _digest(text)[:12]
    note = f" … [{len(text)} characters, sha256 {digest}, all in artifact {pointer}]"
    return text[: limit - len(note)] + note
