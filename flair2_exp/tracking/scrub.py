"""Texts without credentials: whatever is stored or shown goes through here first."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any, Final

_HIDDEN: Final = "***"

SECRET_FILES: Final = (
    ".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "credentials", "*credentials*.json",
    "credentials.y*ml", "credentials.toml", "client_secret*", "service[-_]account*.json",
    "secrets.json", "secrets.y*ml", "secrets.toml", ".netrc", "_netrc", ".pgpass", ".pypirc",
    ".npmrc", ".htpasswd", ".git-credentials", ".dockercfg", ".boto", ".s3cfg", "kubeconfig*",
    "*.kubeconfig",
)  # fmt: skip
"""Names of files that are made for secrets, as git's patterns: no content of theirs is kept."""

_SECRET_NAME: Final = re.compile(
    r"(?:token|secret|passw(?:or)?d|(?<=[_-])pwd|passphrase|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|account[_-]?key|signing[_-]?key|credentials?)"
    r"(?![a-z])",  # not in "tokenizer"
    re.IGNORECASE,
)

_LEAST_SECRET: Final = 8
"""Shorter values are hardly secrets, but words that a text may hold by chance."""

_TOKENS: Final = (
    r"hf_[A-Za-z0-9]{20,}",  # Hugging Face
    r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}",
    r"gl(?:pat|dt|rt|ptt|oas)-[\w\-]{20,}",  # GitLab
    r"A(?:KIA|SIA)[A-Z0-9]{16}",  # AWS
    r"dapi[0-9a-f]{32}",  # Databricks
    r"xox[a-z]-[\w\-]{8,}|xapp-[\w\-]{8,}",  # Slack
    r"AIza[\w\-]{30,}|ya29\.[\w\-]{20,}",  # Google
    r"sk-(?=[\w\-]{0,60}\d)[\w\-]{20,}",  # OpenAI, Anthropic
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"npm_[A-Za-z0-9]{30,}|pypi-[\w\-]{30,}|SG\.[\w\-]{16,}\.[\w\-]{16,}",
    r"eyJ[\w\-]{8,500}\.[\w\-]{8,4000}\.[\w\-]{4,}",  # JSON web tokens
)
"""Tokens known by their own shape."""

# Each pattern takes time linear in the text: nothing unbounded stands before its fixed part.
_SHAPES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # a private key, also in a diff, and one whose end was cut off
    (
        re.compile(
            r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)[\s\S]*?"
            r"(?=-----END [A-Z0-9 ]{0,40}PRIVATE KEY|\Z)"
        ),
        rf"\1{_HIDDEN}",
    ),
    # user:password@ (or token@) of a URL, up to the last @ before the path, as clients read it
    (re.compile(r"(?<=://)[^\s/?#\"'<>]*@"), f"{_HIDDEN}@"),
    (re.compile(r"\b(?i:(bearer|basic)[ ]+)[A-Za-z0-9+/=._~\-]{16,}"), rf"\1 {_HIDDEN}"),
    (re.compile(rf"\b(?:{'|'.join(_TOKENS)})"), _HIDDEN),
)

_QUOTED: Final = re.compile(
    rf"({_SECRET_NAME.pattern}[\w\-]{{0,40}}[\"']?\]?[ \t]{{0,20}}"
    r"(?:[:=]|:[ \t]?[\w\[\]., |]{1,40}=)[ \t]{0,20}[bruf]{0,2})(\"[^\"\n]+\"|'[^'\n]+')",
    re.IGNORECASE,
)
"""name = "value" in code, where anything but a literal is a part of the program."""

_NAMED: Final = re.compile(
    rf"({_SECRET_NAME.pattern}[\w\-]{{0,40}}[\"']?(?:\s?=\s?|\s?:(?!/)\s?))"
    r"(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&\"'}\]]+)",
    re.IGNORECASE,
)
"""name=value and name: value in commands, configs and messages."""

_OPTION: Final = re.compile(
    rf"(--[\w\-]{{0,40}}{_SECRET_NAME.pattern}[ ]+)(?!-)(\S+)", re.IGNORECASE
)
"""--name value in commands."""

_PLAIN: Final = re.compile(
    r"[-+]?[\d.]{1,7}(e[-+]?\d+)?|true|false|null|none|''|\"\"", re.IGNORECASE
)
"""What a network's token has for a value: a size, a switch. A password may be a number."""

_CODE: Final = re.compile(r"\.(?:py|pyi|pyx|ipynb|c|cc|cpp|cu|h|hpp|js|ts|java|go|rs|jl|r)\Z")
"""Files in which what stands behind a telling name without quotes is a part of a program."""


def scrub(text: str, *, code: bool = False, environment: Mapping[str, str] | None = None) -> str:
    """Return the text without credentials, each replaced by `***`.

    Removed are user and password in URLs, values behind names that say what they are (token,
    secret, password, key), authorization headers, private keys, tokens of a known shape, and the
    values that variables of such names have in the environment, wherever they occur.

    Args:
        text: Any text that is to be stored or shown.
        code: The text is source code: behind a telling name only quoted values count.
        environment: The variables to look through; the process's own by default.

    Returns:
        The text; a second time changes nothing more.
    """
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _LEAST_SECRET and _SECRET_NAME.search(name):
            text = text.replace(value, _HIDDEN)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    if code:
        return _QUOTED.sub(_hide_literal, text)
    return _OPTION.sub(_hide, _NAMED.sub(_hide, text))


def _hide(match: re.Match[str]) -> str:
    if "token" in match[1].lower() and _PLAIN.fullmatch(match[2]):
        return match[0]
    return match[1] + _HIDDEN


def _hide_literal(match: re.Match[str]) -> str:
    short = len(match[2]) < _LEAST_SECRET + 2
    if short and "passw" not in match[1].lower():  # token = "[CLS]"
        return match[0]
    return f"{match[1]}'{_HIDDEN}'"


def scrub_diff(diff: str) -> str:
    """Return a diff of git's without credentials, each file by its kind: code, or anything else."""
    parts = re.split(r"(?m)^(?=diff --git )", diff)
    return "".join(scrub(part, code=_is_code(part)) for part in parts)


def _is_code(part: str) -> bool:
    return _CODE.search(part.partition("\n")[0].rstrip('"')) is not None


def scrub_value(name: str, text: str) -> str:
    """Return an option's or a tag's value without credentials: `***` where the name tells of one.

    The values `""` and `null` stay, whatever the name, and sizes and switches of tokens.
    """
    telling = text not in ("", "null") and _SECRET_NAME.search(name)
    if not telling or ("token" in name.lower() and _PLAIN.fullmatch(text)):
        return scrub(text)
    return _HIDDEN


def scrub_tree(value: Any, name: str = "") -> Any:
    """Return plain values, nested in mappings and lists, with every text scrubbed by its name."""
    if isinstance(value, Mapping):
        return {key: scrub_tree(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [scrub_tree(each, name) for each in value]
    return scrub_value(name, value) if isinstance(value, str) else value


def is_scrubbed(value: object) -> bool:
    """Return whether a text, or values nested in mappings and lists, have lost credentials."""
    return _HIDDEN in str(value)


class ScrubbedFormatter(logging.Formatter):
    """Formats messages, and the tracebacks with them, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line (or lines) of a message."""
        return scrub(super().format(record))
