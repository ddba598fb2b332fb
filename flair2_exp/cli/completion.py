"""TAB in bash, zsh and fish: verbs, flags, paths, and the overrides of an experiment.

A shell's function asks for what completes a line by running the program with the line up to the
cursor in the environment variable `COMPLETE`. Click completes a verb's own options. Overrides come
from the declared options and the files of `conf/`, in a quarter of a second; only what these do not
know (`hydra.*`, options below nodes of the user's) is left to Hydra, which composes the config.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from flair2_exp.cli.resume import KEY as RESUME
from flair2_exp.cli.verbs import COMPLETE, PROGRAM, RUN, SHELLS, VERBS, Verb, verb
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import hints, is_group
from flair2_exp.config.groups import config_folder, option_names, options_of
from flair2_exp.lifecycle.folder import RunFolder

_SCRIPTS: Final = {
    "bash": r"""_flair2_exp() {
    local line="${COMP_LINE:0:COMP_POINT}" word='([^[:space:]\]|\\.)*$'
    [[ $line =~ $word ]] && word="${BASH_REMATCH[0]}"
    mapfile -t COMPREPLY < <(VARIABLE="$line" "$1" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
    COMPREPLY=("${COMPREPLY[@]#"${word%"$2"}"}")  # bash replaces what follows its last word break
    [[ ${COMPREPLY[0]-} == *[=/.] ]] && compopt -o nospace
}
complete -F _flair2_exp flair2-exp
""",
    "zsh": r"""(( $+functions[compdef] )) || { autoload -Uz compinit; compinit }
_flair2_exp() {
    local each; local -a open closed
    for each in "${(@f)$(VARIABLE="${(j: :)words[1,CURRENT-1]} $PREFIX" $words[1] 2>/dev/null)}"; do
        each="${each%%$'\t'*}"
        [[ -z $each ]] && continue
        if [[ $each == *[=/.] ]]; then open+=("$each"); else closed+=("$each"); fi
    done
    compadd -U -Q -S '' -a open
    compadd -U -Q -a closed
}
compdef _flair2_exp flair2-exp
""",
    "fish": r"""complete -c flair2-exp -f -a '(VARIABLE=(commandline -cp) flair2-exp 2>/dev/null)'
""",
}  # fmt: skip

_FLAGS: Final = {
    "--multirun": "several runs: sweeps and searches",
    "--cfg": "print the config: job, hydra or all",
    "--resolve": "with --cfg: interpolations as values",
    "--package": "with --cfg: a part of the config",
    "--info": "what Hydra found: searchpath, defaults, …",
    "--config-dir": "a folder of further config files",
    "--config-name": "another primary config",
    "--help": "groups, options and verbs",
    "--version": "of this program",
    "--hydra-help": "Hydra's own flags",
}
_VALUES: Final = {
    "--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}  # fmt: skip
_FOLDERS: Final = ("--config-dir", "-cd", "--config-path", "-cp")
_PATHS: Final = ("hydra.run.dir", "hydra.sweep.dir", "tune.storage")
"""Options that are paths without being declared so."""


@verb(
    "completion",
    examples="""
    eval "$(flair2-exp completion bash)"       # in ~/.bashrc
    eval "$(flair2-exp completion zsh)"        # in ~/.zshrc
    flair2-exp completion fish | source        # in ~/.config/fish/config.fish
    """,
)
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print what makes TAB complete verbs, flags, overrides and paths in a shell."""
    print(script(shell), end="")


def script(shell: str) -> str:
    """Return what a shell executes at its start."""
    return _SCRIPTS[shell].replace("VARIABLE", COMPLETE)


def answer(line: str) -> None:
    """Print what completes a line, one word per line, with its meaning behind a tab; never fail.

    Args:
        line: The command line up to the cursor, with the program.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            items = {item.value: item.help for item in completions(line)}
    except Exception:  # a message, or a warning, would be printed into the prompt
        return
    for value, text in items.items():
        shown = re.sub(r"([\s'\"\\$`&|;<>()*?#!])", r"\\\1", value)
        print(f"{shown}\t{text}" if text else shown)


def completions(line: str) -> Iterator[CompletionItem]:
    """Yield the whole words that the last one of a line may become."""
    words = split_arg_string(line)
    begun = words.pop() if words and not line[-1].isspace() else ""
    names = [Path(word).name for word in words]
    start = next((n for n, name in enumerate(names) if name in (PROGRAM, "flair2_exp")), -1)
    words = words[start + 1 :]
    first = not words
    if words[:1] == [RUN]:
        words = words[1:]
    own = VERBS.get(words[0]) if words else None
    if own is not None and own.place:
        yield from _of_verb(own, words[1:], begun)
        return
    before = words[-1] if words else ""
    if before in _VALUES:
        yield from _items(_VALUES[before], begun)
    elif before in _FOLDERS:
        yield from map(CompletionItem, files(begun, folders_only=True))
    elif begun.startswith("-"):
        yield from (
            CompletionItem(f, help=text) for f, text in _FLAGS.items() if f.startswith(begun)
        )
    else:
        if first:
            of_verbs = VERBS.items()
            yield from (CompletionItem(n, help=v.help) for n, v in of_verbs if n.startswith(begun))
        if not words and f"{RESUME}=".startswith(begun):
            yield CompletionItem(f"{RESUME}=", help="an interrupted run, by its folder")
        yield from map(CompletionItem, overrides(begun, words))


def _of_verb(own: Verb, words: list[str], begun: str) -> Iterator[CompletionItem]:
    """Yield what Click offers for a verb, with the files that it leaves to the shell."""
    complete = ShellComplete(own.command, {}, PROGRAM, "")
    for item in complete.get_completions(words, begun):
        if item.type in ("file", "dir"):
            yield from map(CompletionItem, files(begun, folders_only=item.type == "dir"))
        else:
            yield item


def _items(values: Sequence[str], begun: str) -> Iterator[CompletionItem]:
    return (CompletionItem(value) for value in values if value.startswith(begun))


def overrides(begun: str, words: Sequence[str]) -> Iterator[str]:
    """Yield what an override may become.

    Args:
        begun: Its part before the cursor.
        words: Those before it.
    """
    sign = begun[:1] if begun[:1] in ("+", "~") else ""
    key, equals, value = begun.removeprefix(sign).partition("=")
    if equals:
        values = _values(key, value, words)
        offered = None if values is None else [f"{sign}{key}={each}" for each in values]
    else:
        names = [] if key.startswith("hydra") else list(_names(key))
        offered = [f"{sign}{each}" for each in names] or None
    yield from _of_hydra(begun, words) if offered is None else offered


def _names(begun: str) -> Iterator[str]:
    """Yield groups, nodes and options, a node's own options once its name is typed."""
    groups = (path.name for path in sorted(config_folder().iterdir()) if path.is_dir())
    names = [*(f"{name}=" for name in groups if name != "hydra"), "hydra/", "hydra."]
    for name in option_names():
        end = name.find(".", len(begun))
        names.append(f"{name}=" if end < 0 else name[: end + 1])
    return (name for name in dict.fromkeys(names) if name.startswith(begun) and name != begun)


def _values(key: str, begun: str, words: Sequence[str]) -> Iterator[str] | None:
    """Return what an option's value may become; None where only Hydra can know."""
    if key == RESUME:
        return _runs(begun)
    if begun.startswith((".", "/", "~")) or key in _PATHS:
        return files(begun)
    if key.startswith("hydra"):
        return None
    done, comma, last = begun.rpartition(",")
    folders = [folder / key for folder in (config_folder(), *_config_dirs(words))]
    names = [name for folder in folders if folder.is_dir() for name in options_of(folder)]
    if not names:
        hint, metadata = _declared(key)
        if metadata.get("path"):
            return files(begun)
        names = _words(hint)
    if not names:
        return None if hint is None else iter(())
    return (f"{done}{comma}{name}" for name in sorted(set(names)) if name.startswith(last))


def _declared(key: str) -> tuple[Any, Mapping[str, Any]]:
    """Return an option's type, and what else its declaration says; None where there is none."""
    group: Any = Config
    *nodes, last = key.split(".")
    for node in nodes:
        group = hints(group).get(node)
        if not is_group(group):
            return None, {}
    for item in dataclasses.fields(group):
        if item.name == last:
            return hints(group)[last], item.metadata
    return None, {}


def _words(hint: Any) -> list[str]:
    """Return the words that a type takes, as far as it names them."""
    if hint is bool:
        return ["true", "false"]
    if typing.get_origin(hint) is Literal:
        return [str(each) for each in typing.get_args(hint)]
    inner = typing.get_args(hint)
    return [word for each in inner if each is not type(None) for word in _words(each)]


def _config_dirs(words: Sequence[str]) -> list[Path]:
    """Return the folders that a line adds with `--config-dir`."""
    pairs = itertools.pairwise(words)
    folders = [value for flag, value in pairs if flag in ("--config-dir", "-cd")]
    return [Path(each).expanduser() for each in folders]


def files(begun: str, *, folders_only: bool = False) -> Iterator[str]:
    """Yield the paths that one may become, folders with their slash; hidden ones when asked for."""
    folder, slash, start = begun.rpartition("/")
    base = Path(f"{folder}{slash}" or ".").expanduser()
    for each in sorted(os.scandir(base), key=lambda entry: entry.name) if base.is_dir() else ():
        is_shown = each.name.startswith(start) and (start or not each.name.startswith("."))
        if is_shown and (each.is_dir() or not folders_only):
            yield f"{folder}{slash}{each.name}{'/' if each.is_dir() else ''}"


def _runs(begun: str) -> Iterator[str]:
    """Yield the folders on the way to a run, and runs without the slash that leads further."""
    for path in files(begun, folders_only=True):
        is_run = RunFolder(Path(path).expanduser()).record.is_file()
        yield path.removesuffix("/") if is_run else path


def _of_hydra(begun: str, words: Sequence[str]) -> list[str]:
    """Return what Hydra offers, which composes the config of the words before."""
    from flair2_exp.cli.main import JOB_NAME, register
    from flair2_exp.compat import hydra_completions, opened_hydra

    register()
    folder = next(iter(_config_dirs(words)), None)
    with opened_hydra(JOB_NAME, config_folder(), str(folder) if folder else None) as hydra:
        line = " ".join([*(word for word in words if "=" in word), begun])
        words = hydra_completions(hydra, "config", line)
    # A group with groups below it comes without the sign that its options need.
    return [word if "=" in word or word[-1:] in ("/", ".") else f"{word}=" for word in words]
