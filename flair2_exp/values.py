"""Nested plain values: flat under dotted names, compared, hashed, shown as in an override.

Configs, checkpoints, MLflow parameters and identities are all such values; this is the one place
that takes them apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[Any, Any]) -> dict[str, Any]:
    """Return all leaves of a nested mapping under dotted names, in its order.

    Args:
        nested: Mappings with plain values. Lists count as leaves, and so does an empty mapping, so
            that an option set to nothing is still seen.

    Returns:
        As many entries as there are leaves. Should two leaves get the same dotted name
        (`{"a.b": 1, "a": {"b": 2}}`), the later one gets `_2` behind it.
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

    visit(nested, "")
    return flat


def flat_text(nested: Mapping[Any, Any]) -> dict[str, str]:
    """Return all leaves of a nested mapping under dotted names, as in an override."""
    return {name: render(value) for name, value in flatten(nested).items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two flat mappings: by name, the value before and now.

    1 and 1.0 are one number, a tuple is a list; a name that is absent has the value None.
    """
    return {
        name: (before.get(name), now.get(name))
        for name in dict.fromkeys((*before, *now))
        if _text(before.get(name)) != _text(now.get(name))  # to Python, 0 and False are equal
    }


def shown(changes: Mapping[str, tuple[Any, Any]], limit: int = 4) -> str:
    """Return differences in one line: `optimizer.lr: 0.001 -> 0.01; …; and 3 more`."""
    lines = [f"{name}: {render(old)} -> {render(new)}" for name, (old, new) in changes.items()]
    more = len(lines) - limit
    return "; ".join(lines[:limit]) + (f"; and {more} more" if more > 0 else "")


def canonical(value: Any) -> Any:
    """Return a plain value with numbers as floats and sequences as lists."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): canonical(each) for key, each in value.items()}
    return [canonical(each) for each in value]


def digest(values: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of SHA-256 over plain values, whatever order and spelling."""
    return hashlib.sha256(_text(values).encode()).hexdigest()[:16]


def _text(value: Any) -> str:
    return json.dumps(canonical(value), sort_keys=True)


def render(value: object) -> str:
    """Return a value as in an override: `null`, `true`, `0.001`, `["red", "green"]`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
