"""Texts without credentials: whatever is stored or shown goes through here first."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

_HIDDEN: Final = "***"

_SECRET_NAME: Final = re.compile(
    r"(?:token|secret|passw(?:or)?d|passphrase|api_?key|access_?key|private_?key|credentials?)"
    r"(?![a-z])",  # not in "tokenizer"
    re.IGNORECASE,
)

_LEAST_SECRET: Final = 8
"""Shorter values are hardly secrets, but words that a text may hold by chance."""

# Each pattern takes time linear in the text: nothing unbounded stands before its fixed part.
_SHAPES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # user:password@ (or token@) of a URL, up to the last @ before the path, as clients read it
    (re.compile(r"(?<=://)[^\s/?#\"'<>]*@"), f"{_HIDDEN}@"),
    (re.compile(r"\b(?i:(bearer|basic)[ ]+)[A-Za-z0-9+/=._~\-]{16,}"), rf"\1 {_HIDDEN}"),
    # tokens known by their own shape: Hugging Face, GitHub, GitLab, AWS key ids, Databricks
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
            r"|glpat-[\w\-]{20,}|A(?:KIA|SIA)[A-Z0-9]{16}|dapi[0-9a-f]{32})"
        ),
        _HIDDEN,
    ),
)

_QUOTED: Final = (
    re.compile(
        rf"({_SECRET_NAME.pattern}[\w\-]{{0,40}}[\"']?\s?[=:]\s?)(?:\"[^\"\n]{{8,}}\"|'[^'\n]{{8,}}')",
        re.IGNORECASE,
    ),
    rf"\1'{_HIDDEN}'",
)
"""name = "value" in code, where anything but a literal is a part of the program."""

_NAMED: Final = (
    re.compile(
        rf"({_SECRET_NAME.pattern}[\w\-]{{0,40}}[\"']?(?:\s?=\s?|\s?:(?!/)\s?))"
        r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'}\]]+)",
        re.IGNORECASE,
    ),
    rf"\1{_HIDDEN}",
)
"""name=value and name: value in commands, configs and messages."""

_OPTION: Final = (
    re.compile(rf"(--[\w\-]{{0,40}}{_SECRET_NAME.pattern}[ ]+)(?!-)\S+", re.IGNORECASE),
    rf"\1{_HIDDEN}",
)
"""--name value in commands."""


def scrub(text: str, *, code: bool = False, environment: Mapping[str, str] | None = None) -> str:
    """Return the text without credentials, each replaced by `***`.

    Removed are user and password in URLs, values behind names that say what they are (token,
    secret, password, key), authorization headers, tokens of a known shape, and the values that
    variables of such names have in the environment, wherever they occur.

    Args:
        text: Any text that is to be stored or shown.
        code: The text is source code or a diff: behind a telling name only quoted values count.
        environment: The variables to look through; the process's own by default.

    Returns:
        The text; a second time changes nothing more.
    """
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _LEAST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, _HIDDEN)
    for pattern, replacement in (*_SHAPES, *((_QUOTED,) if code else (_NAMED, _OPTION))):
        text = pattern.sub(replacement, text)
    return text


def scrub_value(name: str, text: str) -> str:
    """Return an option's or a tag's value without credentials: `***` where the name tells of one.

    The values `""` and `null` stay, whatever the name.
    """
    return _HIDDEN if text not in ("", "null") and _SECRET_NAME.search(name) else scrub(text)
