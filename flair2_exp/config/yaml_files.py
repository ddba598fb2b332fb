"""YAML files that a user wrote: read within bounds, each mistake with its file and line.

A file is refused before Hydra reads it: Hydra and OmegaConf answer a tab, a key given twice or a
value of the wrong type with a traceback or without the option's name, and expand aliases without
bound. Only plain YAML is read: text, numbers, lists and mappings; a tag never makes an object.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from flair2_exp.config.experiment import Config
from flair2_exp.config.fields import Group, hints, is_group, is_open, is_optional, unknown
from flair2_exp.config.groups import config_folder
from flair2_exp.errors import ConfigError

_LARGEST: Final = 2 * 2**20  # bytes; a split that lists every patch of FLAIR #2 takes 1.6 MB
_LARGEST_CONFIG: Final = 256 * 2**10  # the whole config of a run, as written down, takes 5 KB
_DEEPEST: Final = 50  # nested lists and mappings; ours has 4, and Python's stack ends near 300
_MOST_VALUES: Final = 1_000_000  # with every alias written out
_MOST_VALUES_OF_CONFIG: Final = 10_000  # which OmegaConf composes in about a second
_TAGS: Final = frozenset(
    {"str", "int", "float", "bool", "null", "seq", "map", "merge", "timestamp"}
)
_PREFIX: Final = "tag:yaml.org,2002:"
_DIGITS: Final = 300  # of a number: no double has more before the point


class _Mistake(yaml.MarkedYAMLError):
    """What is wrong with a node of a file."""

    def __init__(self, node: yaml.Node, problem: str) -> None:
        super().__init__(problem=problem, problem_mark=typing.cast(yaml.Mark, node.start_mark))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for files of a bounded depth."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST and parent is not None:
            raise _Mistake(parent, f"nested more than {_DEEPEST} deep.")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read(path: Path) -> Any:
    """Return what a YAML file holds: None, texts, numbers, dates, lists and mappings.

    Raises:
        ConfigError: It cannot be read, or is not plain YAML; the message names file and line.
    """
    try:
        loader, root = _composed(path, _text(path, _LARGEST), _MOST_VALUES)
        return None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as error:  # a date as 2021-02-30 is a ValueError
        _refuse(path, error)


class ConfigFiles:
    """The config files of one command, each checked before Hydra reads it."""

    def __init__(self) -> None:
        self._below: dict[str, tuple[str, ...]] = {}

    def check(self, name: str, path: Path) -> None:
        """Refuse a file that Hydra cannot compose; those of `conf/` are taken as they are.

        Args:
            name: As Hydra knows it, as `experiment/mine`.
            path: The file.

        Raises:
            ConfigError: It is not plain YAML, its values are not of their options' types, or its
                defaults list leads back to it; the message names file and line.
        """
        if path.is_relative_to(config_folder()):
            return
        text = _text(path, _LARGEST_CONFIG)
        try:
            _, root = _composed(path, text, _MOST_VALUES_OF_CONFIG)
            if root is None:
                return
            if not isinstance(root, yaml.MappingNode):
                raise _Mistake(root, "expected options by name, as `seed: 1`.")
            self._require_no_circle(name, root)
            group = _group_of(name, path, text)
            for node in _scalars(root):
                _require_grammar(node)
            if group is not None:
                _require_options(group, root, f"{group.node}." if group.node else "")
        except yaml.YAMLError as error:
            _refuse(path, error)

    def _require_no_circle(self, name: str, root: yaml.MappingNode) -> None:
        for key, value in root.value:
            if key.value == "defaults":
                self._below[name] = tuple(_defaults(name.rpartition("/")[0], value))
                seen: set[str] = set()
                pending = list(self._below[name])
                while pending:
                    each = pending.pop()
                    if each == name:
                        raise _Mistake(value, f"this defaults list leads back to {name}.yaml.")
                    if each not in seen:
                        seen.add(each)
                        pending += self._below.get(each, ())


def _text(path: Path, largest: int) -> str:
    """Return a regular file's text; a device or a FIFO might never end."""
    if not path.is_file():
        raise ConfigError(f"{path}: this is not a file.")
    try:
        if path.stat().st_size > largest:
            raise ConfigError(f"{path}: more than {largest // 1024} KB: too large to read as YAML.")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(
            f"{path}, line 1: it begins with a byte-order mark: save it as UTF-8 without one."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: this is not UTF-8: save it as UTF-8.") from None


def _composed(path: Path, text: str, most: int) -> tuple[_Loader, yaml.Node | None]:
    """Return a file's nodes, checked; None for an empty file."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{path}, line {line}: the control character {chr(error.character)!r} is not allowed."
        ) from None
    root = loader.get_single_node()
    if root is not None:
        if _size(root, {}) > most:
            raise _Mistake(root, f"with its aliases, more than {most:,} values.")
        for node in _nodes(root):
            _require_plain(node)
        for node in _nodes(root):
            if isinstance(node, yaml.MappingNode):
                loader.flatten_mapping(node)  # what `<<` merges
    return loader, root


def _refuse(path: Path, error: yaml.YAMLError | ValueError) -> NoReturn:
    if not isinstance(error, yaml.MarkedYAMLError):
        raise ConfigError(f"{path}: {error}") from None
    problem, mark, context = error.problem, error.problem_mark, error.context_mark
    line = "" if mark is None else f", line {mark.line + 1}"
    if problem and "'\\t'" in problem:
        problem = "a tab: indent with blanks"
    begun = ""
    if error.context and context and mark and context.line != mark.line:
        begun = f", {error.context} that begins in line {context.line + 1}"
    if problem == "but found another document":
        problem, begun = "a second document begins here: keep one", ""
    end = "" if str(problem).endswith((".", "?")) and not begun else "."
    raise ConfigError(f"{path}{line}: {problem}{begun}{end}") from None


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield every node once, however many aliases lead to it, in the order of the file."""
    seen: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            pending += reversed(_children(node))


def _scalars(root: yaml.Node) -> Iterator[yaml.ScalarNode]:
    return (node for node in _nodes(root) if isinstance(node, yaml.ScalarNode))


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many nodes a node has with every alias written out; refuse one without end.

    Args:
        node: At the top.
        sizes: Those of the nodes that were counted; 0 while a node is being counted.
    """
    if id(node) not in sizes:
        sizes[id(node)] = 0
        sizes[id(node)] = 1 + sum(_size(each, sizes) for each in _children(node))
    size = sizes[id(node)]
    if size == 0:
        raise _Mistake(node, "an alias within what it stands for never ends.")
    return size


def _require_plain(node: yaml.Node) -> None:
    """Refuse tags, numbers without end, and keys that are not text or given twice."""
    if node.tag.removeprefix(_PREFIX) not in _TAGS or not node.tag.startswith(_PREFIX):
        raise _Mistake(node, f"the tag {node.tag.replace(_PREFIX, '!!')} is not plain YAML.")
    if _kind(node) in ("int", "float") and len(node.value) > _DIGITS:
        raise _Mistake(node, f"a number of {len(node.value)} digits.")
    keys = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode) or _kind(key) not in ("str", "merge"):
            shown = f" {key.value}" if isinstance(key, yaml.ScalarNode) else ""
            raise _Mistake(key, f"the key{shown} is not a text: write it in quotes.")
        if key.value in keys:
            raise _Mistake(key, f"{key.value} is given twice.")
        keys.add(key.value)


def _kind(node: yaml.Node) -> str:
    return str(node.tag).removeprefix(_PREFIX)


def _require_grammar(node: yaml.ScalarNode) -> None:
    """Refuse an interpolation that OmegaConf cannot read."""
    if "${" in node.value:
        try:
            OmegaConf.create([node.value])
        except GrammarParseError:
            raise _Mistake(
                node, f"{node.value}: expected an interpolation as ${{model.name}}."
            ) from None


def _group_of(name: str, path: Path, text: str) -> type[Group] | None:
    """Return the group that a file sets, by its header `# @package` or its folder; None: unknown.

    Raises:
        ConfigError: Hydra does not understand the header.
    """
    package = "" if "/" not in name else name.rpartition("/")[0].replace("/", ".")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip().lstrip("#").split()
        if line.strip() and not (line.strip().startswith("#") and words and words[0][0] == "@"):
            break
        if words and words[0] == "@package":
            if len(words) != 2:
                raise ConfigError(f"{path}, line {number}: expected `# @package _global_`.")
            package = words[1].replace("_global_", "").lstrip(".")
    group: Any = Config
    for part in package.split(".") if package else ():
        group = hints(group).get(part) if is_group(group) else None
    return group if is_group(group) else None


def _defaults(group: str, node: yaml.Node) -> Iterator[str]:
    """Yield the names of the files that a defaults list adds; refuse what is not such a list."""
    if not isinstance(node, yaml.SequenceNode):
        raise _Mistake(node, "defaults: expected a list, as `- override /model: unet`.")
    for item in node.value:
        if isinstance(item, yaml.MappingNode) and len(item.value) == 1:
            key, value = item.value[0]
            words = key.value.split("@")[0].split()
            if words[0] == "override":
                continue
            chosen = value.value if isinstance(value, yaml.SequenceNode) else [value]
            names = [f"{words[-1]}/{each.value}" for each in chosen if _kind(each) == "str"]
        elif _kind(item) == "str":
            names = [item.value.split("@")[0]]
        else:
            raise _Mistake(item, "defaults: expected NAME or GROUP: NAME.")
        for each in names:
            full = each if each.startswith("/") or not group else f"{group}/{each}"
            yield full.strip("/").removesuffix(".yaml")


def _require_options(group: type, node: yaml.MappingNode, prefix: str) -> None:
    """Refuse options that a group lacks, and values of another type than theirs."""
    known = hints(group)
    for key, value in node.value:
        name = key.value
        if not prefix and name in ("hydra", "defaults"):
            continue
        if name == "defaults" and name not in known:
            continue
        if name not in known:
            if is_open(group) and isinstance(value, yaml.MappingNode):
                continue  # a further part: whether it has a class is known once all is composed
            raise _Mistake(key, str(unknown(group, name, prefix)))
        if _kind(value) == "null" and not is_optional(group, name):
            raise _Mistake(key, f"{prefix}{name}=null: expected a value.")
        _require_value(known[name], key, value, f"{prefix}{name}")


def _require_value(hint: Any, key: yaml.Node, value: yaml.Node, name: str) -> None:
    """Refuse a value of another type than its option's; one that is known only later passes."""
    if hint is Any or _kind(value) == "null":
        return
    scalar = value if isinstance(value, yaml.ScalarNode) else None
    if scalar and ("${" in scalar.value or scalar.value == "???"):
        return
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    kind = type(inner[0]) if origin is Literal else hint
    if is_group(hint) and isinstance(value, yaml.MappingNode):
        _require_options(hint, value, f"{name}.")
    elif origin is tuple and isinstance(value, yaml.SequenceNode):
        for each in value.value:
            _require_value(inner[0], each, each, name)
    elif origin is Mapping and isinstance(value, yaml.MappingNode):
        for entry, each in value.value:
            _require_value(inner[1], entry, each, f"{name}.{entry.value}")
    elif kind not in _WORDS or not scalar or not _reads_as(kind, scalar):
        expected = _WORDS.get(kind) or _WORDS.get(origin) or _GROUP.format(node=hint.node)
        raise _Mistake(key, f"{name}{f'={scalar.value}' if scalar else ''}: expected {expected}.")


_GROUP: Final = (
    "its options by name; a file of the group is chosen by `- override /{node}: NAME` in defaults"
)
_WORDS: Final[dict[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "one value",
    tuple: "a list, as [a, b]",
    Mapping: "entries by name, as {name: value}",
}


def _reads_as(kind: type, node: yaml.ScalarNode) -> bool:
    """Return whether OmegaConf makes a value of that type of a scalar."""
    if kind is bool:
        text = node.value.lower()
        return text in ("true", "false", "yes", "no", "on", "off", "y", "n") or _kind(node) == "int"
    if kind is str:
        return True
    if _kind(node) in ("int", kind.__name__):
        return True
    try:
        kind(node.value)
    except ValueError:
        return False
    return _kind(node) == "str"
