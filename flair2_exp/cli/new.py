"""`flair2-exp new`: a small project of one's own, which runs at once."""

from __future__ import annotations

import importlib.util
import keyword
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from flair2_exp.cli.verbs import PROGRAM, verb
from flair2_exp.errors import ConfigError
from flair2_exp.files import write_text

TEMPLATE: Final = Path(__file__).resolve().parents[1] / "skeleton"
NAME: Final = "my_study"
"""What the project is called in the template."""


@verb("new", examples="flair2-exp new my_study")
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Write a small project of your own: conf/, a network, a loss, a sweep, a test.

    It runs at once, on the synthetic sample. FOLDER must not exist, and its name be one that Python
    imports.
    """
    _require_usable(folder)
    for name, text in _files(folder.name):
        write_text(folder / name, text)
    conf = folder / "conf"
    print(f"{folder}: a network, a loss, a sweep of both beside the U-Net, and a test. Next:\n")
    print(f"  {PROGRAM} --config-dir {conf} model=my_net preset=tiny")
    print(f"  {PROGRAM} check-model --config-dir {conf} model=my_net")
    print(f"  {PROGRAM} --config-dir {conf} sweep=mine seed=1,2,3 preset=tiny")


def _files(name: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a project of that name, with their paths in it."""
    for path in sorted(TEMPLATE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            place = path.relative_to(TEMPLATE)
            if place.name == "gitignore":  # with its dot it would hide files of the template
                place = place.with_name(".gitignore")
            yield place, path.read_text(encoding="utf-8").replace(NAME, name)


def _require_usable(folder: Path) -> None:
    """Refuse a folder that has something in it, or a name that Python cannot import.

    Raises:
        ConfigError: It is one.
    """
    name = folder.name
    if not name.isidentifier() or keyword.iskeyword(name):
        better = "".join(sign if sign.isalnum() else "_" for sign in name).strip("_")
        hint = f", as {better}" if better.isidentifier() else f", as {NAME}"
        raise ConfigError(
            f"{name or folder}: not a name that Python imports: use letters, digits and _{hint}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: there is something of that name already; choose another.")
    if importlib.util.find_spec(name) is not None and not folder.exists():
        raise ConfigError(
            f"{name}: a module of that name can be imported already, and would be found instead; "
            "choose another name."
        )
