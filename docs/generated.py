"""The parts of the reference that are made from the code: options, verbs, files, tags, errors.

`write` is called by `conf.py` whenever the site is built; the pages of `reference/` include what it
writes. Nothing is declared here a second time.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import click
import yaml

from flair2_exp import errors
from flair2_exp.cli.verbs import PROGRAM, VERBS
from flair2_exp.config.engines import EngineConfig, RayConfig, SlotsConfig, SlurmConfig
from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import OPEN, Group, hints, is_group, is_open, is_optional
from flair2_exp.config.groups import config_folder, options_of
from flair2_exp.lifecycle import folder
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.tracking.tags import Tag

_COMMAND: Final = re.compile(rf"([A-Z0-9_]+=\S+ )*({PROGRAM}|make) ")
"""What a line begins with that is a command rather than prose."""

ENGINES: tuple[type[EngineConfig], ...] = (SlotsConfig, SlurmConfig, RayConfig)


def write(place: Path) -> None:
    """Write all generated parts, each as `NAME.md`, where they differ from what is there.

    Args:
        place: The folder, made where there is none.
    """
    place.mkdir(parents=True, exist_ok=True)
    for part in (groups, options, verbs, run_files, tags, exceptions):
        path, text = place / f"{part.__name__}.md", part()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table; line breaks and bars in cells are taken care of."""
    cells = [tuple(" ".join(cell.split()).replace("|", "\\|") for cell in row) for row in rows]
    rule = tuple("---" for _ in headings)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *cells)) + "\n"


@functools.cache
def meanings(owner: type) -> Mapping[str, str]:
    """Return what is written below each attribute of a class, by name, those of its bases too."""
    texts: dict[str, str] = {}
    for each in reversed(owner.__mro__[:-1]):
        try:
            source = inspect.getsource(each)
        except (OSError, TypeError):  # made at run time
            continue
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(source)).body[0]).body
        for statement, below in itertools.pairwise(body):
            match statement, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name))
                    | ast.Assign(targets=[ast.Name(id=name)]),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    texts[name] = text
    return texts


# Options.


def groups() -> str:
    """Return each group with its choices, and the first sentence of each choice's file."""
    parts = []
    root = config_folder()
    for group in sorted(path for path in root.iterdir() if path.is_dir()):
        if group.name == "hydra":
            continue
        rows = []
        for choice in options_of(group):
            comment = (group / f"{choice}.yaml").read_text(encoding="utf-8")
            command, meaning = _opening(comment)
            rows.append((f"`{group.name}={choice}`", meaning, f"`{command}`" if command else ""))
        parts.append(f"## {group.name}\n\n{table(('choice', 'what', 'used by'), rows)}")
    return "\n".join(parts)


def _opening(text: str) -> tuple[str, str]:
    """Return the first command and the first sentence of the comment that a file opens with."""
    lines = []
    for line in text.splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    commands = [line for line in lines if _COMMAND.match(line)]
    prose = " ".join(line for line in lines if line not in commands).strip()
    sentence = prose.partition(". ")[0].rstrip(".:")
    return commands[0].partition("   ")[0] if commands else "", sentence


def options() -> str:
    """Return all options, group by group: type, bounds, default, meaning."""
    parts = [_section(Config, "", "The experiment itself")]
    parts += [_section(engine, "hydra.launcher.", _launcher(engine)) for engine in ENGINES]
    return "\n".join(parts)


def _launcher(engine: type[EngineConfig]) -> str:
    name = engine.__name__.removesuffix("Config").lower()
    return f"hydra/launcher={name}"


def _section(group: type[Group], prefix: str, title: str) -> str:
    """Return a group's heading, meaning and options, and those of the groups in it."""
    rows, inner = [], []
    for item in dataclasses.fields(group):
        if item.metadata.get("parts"):
            continue
        hint, name = hints(group)[item.name], f"{prefix}{item.name}"
        if is_group(hint):
            inner.append(_section(hint, f"{name}.", name))
        else:
            rows.append(_row(group, item, name))
    text = inspect.cleandoc(group.__doc__ or "")
    if is_open(group):
        text += f"\n\nTakes parts of your own as well: `+{prefix}NAME._target_=CLASS`."
    heading = f"## {title}\n\n{text}\n\n"
    columns = ("option", "type", "default", "meaning")
    return "\n".join([heading + (table(columns, rows) if rows else ""), *inner])


def _row(group: type[Group], item: dataclasses.Field[Any], name: str) -> tuple[str, ...]:
    kind = _kind(hints(group)[item.name])
    if is_optional(group, item.name) and kind != "anything":
        kind += " or null"
    low, high = item.metadata.get("minimum", -OPEN), item.metadata.get("maximum", OPEN)
    if _is_number(hints(group)[item.name]) and (low, high) != (-OPEN, OPEN):
        kind += f", {low:.10g} to {high:.10g}" if high < OPEN else f", at least {low:.10g}"
    if item.metadata.get("path"):
        kind = kind.replace("text", "path")
    meaning = meanings(group).get(item.name, "")
    if not meaning and item.name == "name":
        meaning = "What the chosen file of the group is called."
    return f"`{name}`", kind, _default(item), meaning


def _is_number(hint: Any) -> bool:
    return bool({int, float} & {hint, *typing.get_args(hint)})


def _kind(hint: Any) -> str:
    """Return a type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in inner)
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if origin is Mapping:
        return f"mapping of names to {_kind(inner[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(each) for each in inner)
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return words.get(hint, "anything")


def _default(item: dataclasses.Field[Any]) -> str:
    if item.metadata.get("chosen"):
        return "by the chosen file"
    value = item.default
    if value is dataclasses.MISSING:
        factory = typing.cast(Any, item.default_factory)
        value = factory()
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n")
    return f"`{text.strip()}`"


# Verbs.


def verbs() -> str:
    """Return the help of each verb, as `VERB --help` prints it."""
    parts = []
    for name, verb in VERBS.items():
        parts.append(f"## {name}\n\n{verb.help[0].upper()}{verb.help[1:]}.\n")
        if not verb.place:  # `run`, which may be omitted: its words are groups and options
            continue
        command: Any = verb.command
        if isinstance(command, click.Command):
            settings = command.context_settings
            context = click.Context(command, info_name=f"{PROGRAM} {name}", **settings)
            parts.append(f"```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


# What a run leaves.


def run_files() -> str:
    """Return the files of a run's folder."""
    rows = []
    for name, meaning in meanings(RunFolder).items():
        path = getattr(RunFolder(Path()), name)
        rows.append((f"`{path}`", meaning))
    sweep = [
        (f"`{value}`", text)
        for value, text in _constants(folder)
        if not value.startswith(("/", "."))
    ]
    heads = ("file", "holds")
    return f"{table(heads, rows)}\nIn the folder of a sweep or a search:\n\n{table(heads, sweep)}"


def _constants(module: types.ModuleType) -> Iterator[tuple[str, str]]:
    """Yield the public texts of a module with what is written below each."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, below in itertools.pairwise(body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(value))),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if not name.startswith("_"):
                yield value, text


def tags() -> str:
    """Return the MLflow tags."""
    rows = [(f"`{tag}`", meanings(Tag).get(tag.name, "")) for tag in Tag]
    return table(("tag", "meaning"), rows)


def exceptions() -> str:
    """Return the classes of mistakes with their exit statuses."""
    rows = []
    for name, each in vars(errors).items():
        if isinstance(each, type) and issubclass(each, errors.FlairError):
            meaning = inspect.cleandoc(each.__doc__ or "").partition("\n\n")[0]
            rows.append((f"`{name}`", meaning, str(each.status)))
    return table(("class", "what is wrong", "exit status"), rows)
