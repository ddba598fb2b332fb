"""The README's picture of the house, held against what modules import, also inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flair2_exp"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (
    {"errors", "files", "help", "nomenclature", "signals"},
    {"instantiate", "locking", "schema"},
    {"command_line", "data", "explain", "identity", "models", "preflight"},
    {"run_state", "training"},
    {"tracking"},
    {"assembly", "results"},
    {"experiment", "report"},
    {"sweeps"},
    {"__main__", "benchmarks"},
)
"""From the ground up: what stands in a row imports from the rows below it, and not from its own."""

HEIGHT = {unit: height for height, units in enumerate(LAYERS) for unit in units}


def unit_of(path: Path) -> str:
    """The part of the package that a module belongs to: a folder or a module of its own."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a module imports but for its type hints."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{each.name}" for each in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def test_every_part_of_the_package_has_its_place() -> None:
    assert {unit_of(path) for path in MODULES} - {"__init__"} <= HEIGHT.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_house_and_never_up(path: Path) -> None:
    unit = unit_of(path)
    names = (name.split(".") for name in imported(path))
    others = {name[1] for name in names if name[0] == "flair2_exp" and name[1:]} - {
        unit,
        "__version__",
    }
    assert all(HEIGHT[other] < HEIGHT[unit] for other in others), others


def test_no_config_travels_below_the_experiment() -> None:
    below = ("data", "models", "training", "tracking")
    for path in MODULES:
        if unit_of(path) in below:
            names = list(imported(path))
            read = {name.removeprefix("flair2_exp.") for name in names if ".schema" in name}
            # The schema's words for a message are no config; the module or a node of it is one.
            assert not any(name == "schema" or name.endswith("Config") for name in read), path
            assert not {name.split(".")[0] for name in names} & {"hydra", "omegaconf"}, path
