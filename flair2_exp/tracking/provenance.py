"""Where a result comes from: code, packages, machine and command, without any secret.

Nothing here fails: what cannot be found out is left empty, since a training is not to stop for
want of a git executable. The environment's variables are never stored.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

DIFF_LIMIT: Final = 1_000_000
"""Characters of a diff that are kept: far above a working day's changes, far below a data file."""

UNTRACKED_LIMIT: Final = 200
"""Names of untracked files that are kept."""

_GIT_SECONDS: Final = 20.0
"""How long git may take (a diff on a slow network disk) before the answer is done without."""

_HIDDEN: Final = "***"

_SECRET_NAME: Final = re.compile(
    r"(?:token|secret|passw(?:or)?d|passphrase|api_?key|access_?key|private_?key|credentials?)"
    r"(?![a-z])",  # not in "tokenizer"
    re.IGNORECASE,
)

_LEAST_SECRET: Final = 8
"""Shorter values are no secrets worth the name, but words that a text may hold by chance."""

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
    """The text without credentials, each replaced by `***`.

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
    """The value of an option or a tag without credentials; all of it where the name tells."""
    return _HIDDEN if text not in ("", "null") and _SECRET_NAME.search(name) else scrub(text)


@dataclass(frozen=True)
class GitState:
    """The checkout that the code ran from.

    Attributes:
        commit: The full hash; None outside a checkout or without git.
        branch: The branch; None where the commit is checked out by itself.
        dirty: Whether tracked files differ from the commit or untracked ones lie beside them.
        untracked: Names of untracked files, the first 200.
        diff: The differences of tracked files from the commit, scrubbed and at most `DIFF_LIMIT`
            characters, with a note where it was cut.
        note: What could not be found out, and why.
    """

    commit: str | None = None
    branch: str | None = None
    dirty: bool = False
    untracked: tuple[str, ...] = ()
    diff: str = ""
    note: str = ""


@dataclass(frozen=True)
class Provenance:
    """All that is known of where a run comes from; `files` gives it as artifacts."""

    version: str
    git: GitState
    packages: tuple[str, ...]
    machine: Mapping[str, Any]
    command: str
    overrides: tuple[str, ...] = field(default=())

    def tags(self) -> dict[str, str]:
        """The tags by which MLflow's own pages show source, commit and user."""
        tags = {
            "flair2.version": self.version,
            "mlflow.source.name": self.command,
            "mlflow.source.type": "LOCAL",
            "mlflow.user": str(self.machine.get("user", "")),
        }
        if self.git.commit:
            tags["mlflow.source.git.commit"] = self.git.commit
            tags["flair2.dirty"] = str(self.git.dirty).lower()
        if self.git.branch:
            tags["mlflow.source.git.branch"] = self.git.branch
        return {name: value for name, value in tags.items() if value}

    def files(self) -> dict[str, Any]:
        """Artifact paths with their content: text, or what is to be written as JSON."""
        git = {key: value for key, value in asdict(self.git).items() if key != "diff"}
        files: dict[str, Any] = {
            "provenance/git.json": {"version": self.version, **git},
            "provenance/packages.txt": "\n".join(self.packages) + "\n",
            "provenance/machine.json": {**self.machine, "command": self.command},
            "config/overrides.yaml": "".join(f"- {_yaml(line)}\n" for line in self.overrides)
            or "[]\n",
        }
        if self.git.diff:
            files["provenance/diff.patch"] = self.git.diff
        return files


def _yaml(text: str) -> str:
    """A string as a YAML scalar: single quotes hold anything but themselves and line breaks."""
    return "'" + " ".join(text.splitlines()).replace("'", "''") + "'"


def collect(overrides: Iterable[str] = (), argv: Sequence[str] | None = None) -> Provenance:
    """Find out where this process's code, packages and machine come from; about 0.2 s.

    Args:
        overrides: Hydra's overrides of this run.
        argv: The command line; this process's own by default.
    """
    from flair2_exp import __version__

    return Provenance(
        version=__version__,
        git=git_state(Path(__file__).resolve().parent),
        packages=packages(),
        machine=machine(),
        command=command_line(sys.orig_argv if argv is None else argv),
        overrides=tuple(scrub(line) for line in overrides),
    )


def command_line(argv: Sequence[str]) -> str:
    """The command as one would type it again, scrubbed; the interpreter without its folder."""
    words = list(argv)
    if words and Path(words[0]).name.startswith("python"):
        words[0] = "python"
    return scrub(shlex.join(words))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails. Never asks, never runs a configured program."""
    try:
        answer = subprocess.run(
            ("git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments),
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace") if answer.returncode == 0 else None


def git_state(folder: Path) -> GitState:
    """The state of the checkout that holds this package.

    Args:
        folder: The package's folder, or one in it. A package that was installed into a checkout
            of something else (site-packages, a virtual environment) has no commit of its own: the
            folder must hold files that git tracks.
    """
    if not _git(folder, "ls-files", "--", "."):
        return GitState(note="not run from a git checkout (or git is missing): see the version")
    commit = _git(folder, "rev-parse", "HEAD")
    root = (_git(folder, "rev-parse", "--show-toplevel") or "").rstrip("\n")
    top = Path(root) if root else folder
    branch = (_git(folder, "symbolic-ref", "--short", "-q", "HEAD") or "").strip()
    names = (_git(top, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    untracked = [name for name in names if name]
    diff, notes = "", []
    if commit is None:
        notes.append("no commit yet")
    else:
        answer = _git(top, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
        notes += ["the diff could not be made"] if answer is None else []
        diff = _bounded(answer or "")
    if len(untracked) > UNTRACKED_LIMIT:
        notes.append(f"the first {UNTRACKED_LIMIT} of {len(untracked)} untracked files")
    return GitState(
        commit=commit.strip() if commit else None,
        branch=branch or None,
        dirty=bool(diff or untracked),
        untracked=tuple(untracked[:UNTRACKED_LIMIT]),
        diff=diff,
        note="; ".join(notes),
    )


def _bounded(diff: str) -> str:
    kept = scrub(diff[:DIFF_LIMIT], code=True)
    if len(diff) <= DIFF_LIMIT:
        return kept
    return (
        f"{kept}\n# cut here: {len(diff)} characters in all, of which the first {DIFF_LIMIT}"
        " are kept; this patch does not apply as it is\n"
    )


def packages() -> tuple[str, ...]:
    """All installed packages as `name==version`, sorted by name; 0.1 s."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a half-removed package has no name
            found.setdefault(name.lower(), f"{name}=={distribution.version}")
    return tuple(found[name] for name in sorted(found))


def machine() -> dict[str, Any]:
    """The machine: processor, cores that may be used, memory, GPUs, system, Python.

    GPUs are asked of torch, and only where it is imported already.
    """
    return {
        "host": platform.node(),
        "user": _user(),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
    }


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's number without a name
        return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
