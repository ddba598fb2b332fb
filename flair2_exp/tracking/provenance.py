"""Where a result comes from: code, packages, machine and command, without any secret.

Nothing here fails: what cannot be found out is left empty, since a training is not to stop for
want of a git executable. The environment's variables are never stored.
"""

from __future__ import annotations

import email
import getpass
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flair2_exp.machine import cores
from flair2_exp.tracking.scrub import SECRET_FILES, scrub, scrub_diff
from flair2_exp.tracking.tags import Tag

DIFF_LIMIT: Final = 1_000_000
"""Characters of a diff that are kept: far above a working day's changes, far below a data file."""

UNTRACKED_LIMIT: Final = 200
"""Names of untracked files that are kept."""

_COMPUTING: Final = (
    "torch", "torchvision", "lightning", "segmentation-models-pytorch", "timm", "numpy", "rasterio"
)  # fmt: skip
"""Packages whose version may change a score: a tag has them, an artifact has all."""

_GIT_SECONDS: Final = 20.0
"""How long git may take (a diff on a slow network disk) before the answer is left out."""


@dataclass(frozen=True)
class GitState:
    """The checkout that the code ran from."""

    commit: str | None = None
    """The full hash; None outside a checkout or without git."""
    branch: str | None = None
    """None where the commit is checked out by itself."""
    dirty: bool = False
    """Whether tracked files differ from the commit or untracked ones lie beside them."""
    untracked: tuple[str, ...] = ()
    """Names of untracked files, the first `UNTRACKED_LIMIT`."""
    diff: str = ""
    """Of tracked files against the commit, but those that hold secrets; scrubbed, with a note where
    it was cut."""
    note: str = ""
    """What could not be found out, and why."""


@dataclass(frozen=True)
class Provenance:
    """All that is known of where a run comes from; `files` gives it as artifacts."""

    version: str
    git: GitState
    packages: tuple[str, ...]
    machine: Mapping[str, Any]
    command: str
    overrides: tuple[str, ...] = ()

    def tags(self) -> dict[str, str]:
        """Return the tags by which MLflow's own pages show source, commit and user."""
        tags = {
            Tag.VERSION: self.version,
            Tag.PACKAGES: "; ".join([f"python=={platform.python_version()}", *self._computing()]),
            Tag.MACHINE: ", ".join([self.machine.get("host", ""), *self._processors()]),
            Tag.SOURCE_NAME: self.command,
            Tag.SOURCE_TYPE: "LOCAL",
            Tag.USER: self.machine.get("user"),
            Tag.COMMIT: self.git.commit,
            Tag.DIRTY: str(self.git.dirty).lower() if self.git.commit else None,
            Tag.BRANCH: self.git.branch,
        }
        return {str(name): value for name, value in tags.items() if value}

    def _computing(self) -> list[str]:
        """Return the packages of `_COMPUTING` with their versions."""
        named = {line.partition("==")[0].lower().replace("_", "-"): line for line in self.packages}
        return [named[name] for name in _COMPUTING if name in named]

    def _processors(self) -> list[str]:
        """Return the GPUs by kind with their number, or the processor."""
        gpus = Counter(self.machine.get("gpus") or ())
        return [f"{number} x {name}" for name, number in gpus.items()] or [
            str(self.machine.get("processor", ""))
        ]

    def files(self) -> dict[str, Any]:
        """Return artifact paths with their content: text, or what is to be written as JSON."""
        import yaml

        git = {"version": self.version, **asdict(self.git)}
        diff = git.pop("diff")
        overrides = yaml.safe_dump(list(self.overrides), allow_unicode=True, width=sys.maxsize)
        return {
            "provenance/git.json": git,
            "provenance/packages.txt": "\n".join(self.packages) + "\n",
            "provenance/machine.json": {**self.machine, "command": self.command},
            "config/overrides.yaml": overrides,
            **({"provenance/diff.patch": diff} if diff else {}),
        }


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
    """Return the command as one would type it again, scrubbed; the interpreter without folder."""
    words = list(argv)
    if words and Path(words[0]).name.startswith("python"):
        words[0] = "python"
    return scrub(shlex.join(words))


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where it fails.

    Git asks nothing and runs no configured program.
    """
    try:
        answer = subprocess.run(
            ("git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments),
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace")


def git_state(folder: Path) -> GitState:
    """Return the state of the checkout that holds this package.

    Args:
        folder: The package's folder, or one in it. A package that was installed into a checkout
            of something else (site-packages, a virtual environment) has no commit of its own: the
            folder must hold files that git tracks.
    """
    if not _git(folder, "ls-files", "--", "."):
        return GitState(note="not run from a git checkout (or git is missing): see the version")
    commit = _git(folder, "rev-parse", "HEAD")
    branch = _git(folder, "symbolic-ref", "--short", "-q", "HEAD")
    top = Path((_git(folder, "rev-parse", "--show-toplevel") or str(folder)).rstrip("\n"))
    listing = _git(top, "ls-files", "--others", "--exclude-standard", "-z") or ""
    untracked = listing.split("\0")[:-1]
    kept = (".", *(f":(exclude,glob,icase)**/{name}" for name in SECRET_FILES))
    plain = ("--no-ext-diff", "--no-textconv", "--no-color")
    diff = commit and _git(top, "diff", *plain, "HEAD", "--", *kept)
    notes = []
    if diff is None:
        notes.append("no commit yet" if commit is None else "the diff could not be made")
    if len(untracked) > UNTRACKED_LIMIT:
        notes.append(f"the first {UNTRACKED_LIMIT} of {len(untracked)} untracked files")
    return GitState(
        commit=commit.strip() if commit else None,
        branch=branch.strip() if branch else None,
        dirty=bool(diff or untracked),
        untracked=tuple(untracked[:UNTRACKED_LIMIT]),
        diff=_bounded(diff or ""),
        note="; ".join(notes),
    )


def _bounded(diff: str) -> str:
    note = (
        f"\n# cut here: {len(diff)} characters in all, of which the first {DIFF_LIMIT}"
        " are kept; this patch does not apply as it is\n"
    )
    return scrub_diff(diff[:DIFF_LIMIT]) + (note if len(diff) > DIFF_LIMIT else "")


def packages() -> tuple[str, ...]:
    """Return all installed packages as `name==version`, sorted by name; 0.05 s."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        # Its head alone, once: what follows is a whole README.
        head = email.message_from_string(text.partition("\n\n")[0])
        if name := head["Name"]:  # a half-removed package has no name
            versions.setdefault(name.lower(), f"{name}=={head['Version']}")
    return tuple(versions[name] for name in sorted(versions))


def machine() -> dict[str, Any]:
    """Return the machine: processor, cores that may be used, memory, GPUs, system, Python.

    GPUs are listed by torch, and only where it is imported already.
    """
    return {
        "host": platform.node(),
        "user": _user(),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's number without a name
        return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
