"""The rules of the house: what may import what, and what is spelled in one place only.

Imports count wherever they stand, also inside functions, but for those of type hints.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

import pytest

from flair2_exp.lifecycle.folder import RunFolder

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flair2_exp"
MODULES = sorted(PACKAGE.rglob("*.py"))
GROUND = (
    "errors", "nomenclature", "values", "files", "shortage", "slurm", "signals", "compat",
    "machine", "ranks", "locking", "projects", "registry", "score", "streams",
    "progress",
)  # fmt: skip
"""The ground modules: each may import those before it."""
LAYERS = (
    *({module} for module in GROUND),
    {"config"},
    {"data", "models"},
    {"training", "tracking"},
    {"lifecycle"},
    {"engines"},
    {"results"},
    {"report", "inference", "skeleton"},
    {"sweeps"},
    {"cli"},
    {"__main__", "api"},
)
"""From the ground up: what stands in a row imports from the rows below it, and not from its own."""
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
APART = "optuna_sweeper"
"""Can be copied into other projects: it imports nothing of this one, and few rooms know it."""
KNOW_APART = {"sweeps", "cli", "tracking.process", "tracking.store", "engines"}

WHOLE_CONFIG = {"experiment", "compose", "identity"}
"""Modules of config/ that are about the whole config of an experiment."""

PUBLIC = {"_target_", "_exit"}
"""A config's word for a class, and `os._exit`: public names with an underscore."""

NOT_OF_A_RUN = {
    ("config/groups.py", "config.yaml"),  # Hydra's primary config
    ("lifecycle/record.py", "config/config.yaml"),  # an artifact's name in MLflow
}
"""Texts in modules that equal the name of a file in a run's folder, and are another file's."""


def name_of(path: Path) -> str:
    """A module's path in the package."""
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    """The part of the package that a module belongs to: a folder or a module of its own."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a module imports but for its type hints."""
    package = ["flair2_exp", *path.relative_to(PACKAGE).parts[:-1]]
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{each.name}" for each in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def rooms_imported(path: Path) -> set[str]:
    """The other rooms that a module imports from."""
    parts = (name.split(".") for name in imported(path))
    rooms = {name[1] for name in parts if name[0] == "flair2_exp" and name[1:]}
    return rooms - {room_of(path), "__version__"}


def texts(path: Path) -> Iterator[str]:
    """All texts in a module's code, those in f-strings included, but for docstrings."""
    documented = {id(node.value) for node in ast.walk(tree(path)) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree(path)) if isinstance(node, ast.Constant))
    for constant in constants:
        if isinstance(constant.value, str) and id(constant) not in documented:
            yield constant.value


def test_every_part_of_the_package_has_its_place() -> None:
    assert {room_of(path) for path in MODULES} - {"__init__", APART} <= HEIGHT.keys()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_the_house_and_never_up(path: Path) -> None:
    room, others = room_of(path), rooms_imported(path)
    if room == APART:
        assert others == set()
        return
    if room in KNOW_APART or ".".join((room, path.stem)) in KNOW_APART:
        others -= {APART}
    assert all(HEIGHT.get(other, len(LAYERS)) < HEIGHT[room] for other in others), others


def test_no_whole_config_travels_below_a_run() -> None:
    for path in MODULES:
        if room_of(path) in ("data", "models", "training", "tracking", *GROUND):
            parts = [name.split(".") for name in imported(path)]
            of_config = {name[2] for name in parts if name[:2] == ["flair2_exp", "config"]}
            assert not of_config & {*WHOLE_CONFIG, "Config"}, path
            if room_of(path) not in GROUND:
                assert not {name[0] for name in parts} & {"hydra", "omegaconf"}, path


def test_report_and_tracking_need_no_training() -> None:
    """The score is a ground module; whoever reports loads neither torch nor Lightning for it."""
    for path in MODULES:
        if room_of(path) in ("report", "tracking"):
            assert "training" not in rooms_imported(path), path


def test_private_names_of_other_libraries_stand_in_compat_alone() -> None:
    """Nor does a module use another one's private names: those that it does not define itself."""
    assert "job._return_value" in attributes(PACKAGE / "compat.py")  # so this finds them
    for path in MODULES:
        if path.stem == "compat":
            continue
        names = [name for name in imported(path) if not name.startswith("__future__")]
        private = {name for name in names if re.search(r"(^|\.)_[a-z]", name)}
        private |= {use for use in attributes(path) if use.rpartition(".")[2] not in own(path)}
        assert not private, path


def attributes(path: Path) -> Iterator[str]:
    """The uses of attributes that begin with one underscore: `job._return_value`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            yield ast.unparse(node)


def own(path: Path) -> set[str]:
    """The names that a module defines: functions, classes, variables, attributes of `self`."""
    names = set(PUBLIC)
    for node in ast.walk(tree(path)):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                names.add(node.attr)
    return names


def test_tags_of_mlflow_are_spelled_in_one_table() -> None:
    for path in (*MODULES, *ROOT.glob("scripts/**/*.py")):
        if path != PACKAGE / "tracking" / "tags.py":
            assert not [text for text in texts(path) if text.startswith("flair2.")], path


def test_names_of_a_runs_files_are_spelled_in_one_class() -> None:
    properties = cached_property | property
    names = [name for name, each in vars(RunFolder).items() if isinstance(each, properties)]
    files = {getattr(RunFolder(Path("run")), name).name for name in names}
    assert {"run.json", "metrics.json", "best.ckpt", "error.txt"} <= files
    for path in MODULES:
        if path != PACKAGE / "lifecycle" / "folder.py":
            spelled = {(name_of(path), each) for each in texts(path)}
            named = {each for each in spelled if each[1].rpartition("/")[2] in files}
            assert named <= NOT_OF_A_RUN


# The picture of the design page.


def arrows() -> list[tuple[str, str]]:
    """The arrows between rooms in the design page's picture; `ground` is all ground modules."""
    page = (ROOT / "docs" / "explanation" / "design.md").read_text("utf-8")
    picture = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert picture is not None
    lines = re.findall(r"^\s*(\w+)(?:\[.*?\])?\s*-\.?->\s*(\w+)", picture[1], re.MULTILINE)
    rooms = {*HEIGHT, APART, "ground"}
    return [(tail, head) for tail, head in lines if {tail, head} <= rooms]


def height(room: str) -> int:
    """How high a room of the picture stands."""
    return -1 if room == APART else HEIGHT[GROUND[-1] if room == "ground" else room]


def test_every_arrow_of_the_picture_goes_down_the_house() -> None:
    assert arrows()
    assert not [arrow for arrow in arrows() if height(arrow[0]) <= height(arrow[1])]


def test_every_import_between_rooms_of_the_picture_follows_its_arrows() -> None:
    drawn = {room for arrow in arrows() for room in arrow}
    for path in MODULES:
        reached, waiting = set[str](), [room_of(path)]
        while waiting:
            heads = {head for tail, head in arrows() if tail == waiting[-1]} - reached
            waiting = waiting[:-1] + sorted(heads)
            reached |= heads
        if path in (PACKAGE / "tracking" / "process.py", PACKAGE / "tracking" / "store.py"):
            reached.add(APART)
        if room_of(path) in drawn:
            assert rooms_imported(path) & drawn <= reached, path
