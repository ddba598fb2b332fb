"""Hydra's and OmegaConf's exceptions, in words that a person can act on.

Hydra reports a misspelt key or a value of the wrong type over many lines, and names no neighbour.
Here each becomes one or two lines: what was given, what was expected, what to do.
"""

from __future__ import annotations

import difflib
import errno
import re

from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flair2_exp.config.groups import config_folder, option_names, options_of, top_level
from flair2_exp.errors import FlairError, nearest
from flair2_exp.files import has_control_characters
from flair2_exp.shortage import shortage

_EXTRAS = {"joblib": "parallel", "submitit_slurm": "slurm", "submitit_local": "slurm"}
"""The launchers of other packages, and the extra that brings each."""

CONFIG_EXCEPTIONS = (HydraException, OmegaConfBaseException)
"""What composing and reading a config can raise."""


def explain(error: BaseException) -> str | None:
    """Return the message to show for an exception; None for a bug, which keeps its traceback.

    Args:
        error: What the entry point caught.
    """
    if isinstance(error, FlairError):
        return str(error)
    if isinstance(error, HydraException) and isinstance(error.__cause__, FlairError):
        return str(error.__cause__)  # of an engine's options, which Hydra hands to its launcher
    lack = shortage(error)
    if lack is not None:
        return f"{lack}\nThen give the same command again."
    if isinstance(error, CompactHydraException) and not _is_hydras(error):
        return str(error)  # a plugin's own words, as a search's
    # Hydra 1.4 begins with the place of the override among all others.
    text = re.sub(r"\AError when parsing index: .*\n", "", str(error) or str(error.__cause__))
    if isinstance(error, ValueError) and text.startswith("Config group override must be"):
        return (
            "a config group takes the name of one of its files, not null or a number: omit it "
            "instead, or write a name that looks like one in quotes, as experiment=\\'1\\'."
        )
    if isinstance(error, AssertionError) and "Unexpected type for root: NoneType" in text:
        # OmegaConf's, of an option below a node that is null; it does not say which.
        return "dataset.sample.*: these options are those of dataset=sample alone; omit them."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:100]}...: a longer name than the file system takes."
    if isinstance(error, UserWarning) and text.startswith("provider=hydra.searchpath"):
        return f"hydra.searchpath: there is no folder {text.partition('path=')[2].split()[0]}."
    if isinstance(error, RuntimeError) and text.startswith(("Invalid plugin", "Unknown plugin")):
        return f"{text}: it is chosen from the group: hydra/launcher=NAME or hydra/sweeper=NAME."
    if not isinstance(error, CONFIG_EXCEPTIONS):
        return None
    for pattern, say in _CASES:
        match = re.search(pattern, text, flags=re.DOTALL)
        if match:
            return say(match, error)
    return _first_lines(text)


def _is_hydras(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] == "hydra"


def _missing_option(match: re.Match[str], error: BaseException) -> str:
    # Hydra names only the last folder's options, and none below a group's subfolder.
    group = match["path"].split("/")[0]
    listed = re.findall(r"^\s+(\S+)$", match.string.partition("Available options")[2], re.M)
    if group == "hydra":  # whose options are Hydra's and its plugins', which it lists itself
        group, _, option = match["path"].rpartition("/")
        if group == "hydra/launcher" and option in _EXTRAS:
            return (
                f"{group}={option}: its package is not installed: "
                f"pip install 'flair2-exp[{_EXTRAS[option]}]'"
            )
        return f"{group}={option}: no such option; {nearest(option, listed)}"
    option = match["path"].removeprefix(f"{group}/")
    own = [] if "/" in option else listed  # of all folders, that of --config-dir among them
    options = list(dict.fromkeys([*options_of(config_folder() / group), *own]))
    if not options:
        return _unknown_group(match, error)
    return f"{group}={option}: no such option; {nearest(option, options)}"


def _unknown_key(match: re.Match[str], error: BaseException) -> str:
    key = match["key"]
    names = option_names()
    # A misspelt word deep in the name is nearer than the whole name tells, so the last part counts
    # within its own node.
    node, _, last = key.rpartition(".")
    if key in names:
        return f"{key}: it has no such entry; to add one, write +{key}={{NAME:VALUE}}"
    siblings = [name.removeprefix(f"{node}.") for name in names if name.startswith(f"{node}.")]
    if "options" in siblings and not difflib.get_close_matches(last, siblings, cutoff=0.5):
        return (
            f"{key}: no such option of {node}; one of its class's is written "
            f"+{node}.options={{{last}:VALUE}}"
        )
    if node and siblings:
        return f"{key}: no such option of {node}; {nearest(last, siblings)}"
    if key.startswith("hydra."):
        return f"{key}: no such option; see `flair2-exp --cfg hydra`."
    if any(key.startswith(f"{name}.") for name in names):
        near = difflib.get_close_matches(last, _entries_beside(error), n=3, cutoff=0.7)
        if near:
            return f"{key}: {node} has no such entry; did you mean {' or '.join(near)}?"
        return f"{key}: {node} has no such entry; to add it, write +{node}={{{last}:VALUE}}"
    groups = top_level()
    hint = nearest(key, groups) if not node else nearest(node, groups)
    return f"{key}: no such option; {hint}"


def _entries_beside(error: BaseException) -> list[str]:
    """Return the entries of the mapping in which OmegaConf did not find one."""
    cause: BaseException | None = error
    while cause is not None:
        parent = getattr(cause, "parent_node", None)
        if isinstance(parent, DictConfig):
            return [str(each) for each in parent]
        cause = cause.__cause__
    return []


def _unknown_group(match: re.Match[str], error: BaseException) -> str:
    named = next(iter(match.groupdict().values()))
    if named.startswith("hydra/sweeper/"):
        return f"{named}: no such group here; a search has it: add tune=NAME."
    if named.startswith("hydra/"):
        return f"{named}: Hydra has no such group; see `flair2-exp --hydra-help`."
    key = named.split("/")[0]
    return f"{key}: no such group; {nearest(key, top_level())}"


def _wrong_type(match: re.Match[str], error: BaseException) -> str:
    reason = _reason(error)
    return f"{match['override']}: {reason}"


def _reason(error: BaseException) -> str:
    """Return the innermost OmegaConf message, without the lines that speak of its internals."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    first = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    for pattern, expected in _EXPECTED:
        if re.search(pattern, first):
            return f"expected {expected}."
    return first


def _syntax(match: re.Match[str], error: BaseException) -> str:
    override = str(getattr(error, "override", None) or "")
    if not override:  # an interpolation, read when its value is needed
        return f"{getattr(error, 'full_key', None)}: not an interpolation that can be read."
    if has_control_characters(override):
        return f"{override!r}: a line break or another control character; omit it."
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override}: expected KEY=VALUE; a value with spaces is quoted: 'KEY=\"a b\"'."
    problem = re.sub(r" expecting \{.*", "", match["problem"])
    if problem.startswith("Lexer"):
        problem = "a sign or a quote is out of place"
    if value.startswith("{") and {"'", '"'} & set(value):
        bare = value.replace("'", "").replace('"', "")
        return f"{override}: keys within braces take no quotes; write +{key.lstrip('+')}={bare}"
    quoted = "a value" if {"'", '"'} & set(value) else value
    return (
        f"{override}: Hydra's grammar does not read this: {problem}.\n"
        f"Quote it twice, for the shell and for Hydra: '{key}=\"{quoted}\"'."
    )


def _several_values(match: re.Match[str], error: BaseException) -> str:
    key, _, values = match["override"].partition("=")
    return (
        f"{key}={values}: several values are several jobs: add --multirun (--cfg shows one job).\n"
        f"A list is written {key}=[{values}], a text with commas '{key}=\"{values}\"'."
    )


def _given_twice(match: re.Match[str], error: BaseException) -> str:
    return f"{match['group']}: an option of it is chosen already; give {match['group']}=NAME once."


def _no_interpolation(match: re.Match[str], error: BaseException) -> str:
    key, name = match["key"], match["name"]
    if "." in name:
        return f"{key}: ${{{name}}} is not an option."
    return f"{key}: ${{{name}}} is not an option; an environment variable is ${{oc.env:{name}}}."


def _no_value(match: re.Match[str], error: BaseException) -> str:
    return f"{match['key']} has no value: choose an option of its group, or set it."


def _no_variable(match: re.Match[str], error: BaseException) -> str:
    key, name = match["key"], match["name"]
    return (
        f"{key}: the environment variable {name} is not set: set it, or give another value, as "
        f"${{oc.env:{name},VALUE}}."
    )


def _no_resolver(match: re.Match[str], error: BaseException) -> str:
    key, name = match["key"], match["name"]
    return f"{key}: ${{{name}:...}} is not known; an environment variable is ${{oc.env:NAME}}."


def _in_a_circle(match: re.Match[str], error: BaseException) -> str:
    return f"{match['key']}: its value refers to itself (${{...}}): write the value."


def _unresolved(match: re.Match[str], error: BaseException) -> str:
    reason = match["reason"].partition(" expecting {")[0]
    return f"{match['key']}: its interpolation has no value: {reason.rstrip('.')}."


def _no_header(match: re.Match[str], error: BaseException) -> str:
    return (
        f"{match['name']}.yaml, line 1: expected `# @package _global_`, and options by name in "
        "the lines after it."
    )


def _no_default(match: re.Match[str], error: BaseException) -> str:
    return f"{match['file']}.yaml: its defaults list names {match['name']}, which is not there."


def _no_primary(match: re.Match[str], error: BaseException) -> str:
    return f"there is no {match['name']}.yaml in the config folder: omit --config-name."


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:2])


_CASES = (
    (r"In '(?P<name>(?P<group>[^'/]+)/[^']+)': .*Key '(?P=group)' (?:is )?not in", _no_header),
    (r"In '(?P<file>[^']+)': Could not load '(?P<name>[^']+)'", _no_default),
    (r"Environment variable '(?P<name>[^']+)' not found.*full_key: (?P<key>\S+)", _no_variable),
    (r"Unsupported interpolation type (?P<name>\S+)\s+full_key: (?P<key>\S+)", _no_resolver),
    (r"Recursive interpolation detected\s+full_key: (?P<key>\S+)", _in_a_circle),
    (
        r"raised while resolving interpolation: (?P<reason>[^\n]+)\s+full_key: (?P<key>\S+)",
        _unresolved,
    ),
    (r"Could not find '(?P<path>[^']+)'", _missing_option),
    (
        r"Could not override '(?P<key>[^'@]+)(@[^']*)?'\.?\s+No match in the defaults list",
        _unknown_group,
    ),
    (r"Could not override '(?P<key>[^'@]+)", _unknown_key),
    (r"Key '(?P<key>[^']+)' (?:is )?not in", _unknown_key),
    (r"Error merging override (?P<override>.+?)(?:\n|$)", _wrong_type),
    (r"Ambiguous value for argument '(?P<override>.+?)'\n", _several_values),
    (r"Multiple values for (?P<group>[^.]+)\. To override", _given_twice),
    (r"Interpolation key '(?P<name>[^']+)' not found\s+full_key: (?P<key>\S+)", _no_interpolation),
    (r"Cannot find primary config '(?P<name>[^']+)'", _no_primary),
    (r"Missing mandatory value: (?P<key>\S+)", _no_value),
    (
        r"(?P<problem>(?:missing EQUAL|mismatched input|extraneous input|no viable alternative"
        r"|token recognition error|LexerNoViableAltException)[^\n]*)",
        _syntax,
    ),
)

_EXPECTED = (
    (r"could not be converted to Integer", "a whole number"),
    (r"could not be converted to Float", "a number"),
    (r"could not be converted to Boolean|not a valid bool", "true or false"),
    (r"is not Optional", "a value, not null"),
    (r"is not a ListConfig", "a list, as [a,b]"),
    (r"is not a subclass of", "its options one by one, as NODE.OPTION=VALUE"),
    (
        r"'dataset.sample' is None",
        "no such option here, among those of dataset=sample alone; omit them",
    ),
    (r"Cannot merge", "entries by name, as +KEY={NAME:VALUE}"),
    (r"Cannot convert '\w+' to string", "one value"),
)
"""What OmegaConf says of a value of the wrong type, and what was expected."""
