"""A user's own code: where it is found, which files it consists of, and what it does in tracebacks.

A project is a folder with `conf/` in it, as `flair2-exp new` makes it. Own code is all Python that
is neither this package's nor an installed one's nor the standard library's.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Final

OURS: Final = Path(__file__).resolve().parent

_MOST_FILES: Final = 1000
_LARGEST: Final = 2**20
"""Bytes; source that somebody wrote is far smaller."""


class _Project:
    """Finds one package: a project's folder, by its name.

    Putting the folder above on the path would offer whatever else lies there, as a folder `plotly`
    full of figures, to every library that looks for its optional dependencies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where the package is, if it is this one and not a module of a module."""
        del target
        if path is not None or name != self.folder.name:
            return None
        init = self.folder / "__init__.py"
        if init.is_file():
            return importlib.util.spec_from_file_location(
                name, init, submodule_search_locations=[str(self.folder)]
            )
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(self.folder)]
        return spec


def make_importable(config_folder: str | Path) -> None:
    """Let a config name the classes of the project that a folder of configs lies in.

    With `my_study/conf`, the module `my_study/nets.py` is `my_study.nets`, and also `nets`. What is
    installed comes first.

    Args:
        config_folder: That of `--config-dir`.
    """
    folder = Path(config_folder).resolve().parent
    if folder == OURS or (folder / OURS.name).resolve() == OURS:
        return
    finders = [each for each in sys.meta_path if isinstance(each, _Project)]
    if all(each.folder != folder for each in finders):
        sys.meta_path.append(_Project(folder))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def importable() -> tuple[Path, ...]:
    """Return the folders of the projects that `make_importable` was given."""
    return tuple(each.folder for each in sys.meta_path if isinstance(each, _Project))


def code_of(path: str) -> dict[str, Path]:
    """Return the files of own code that a dotted path names: its package's.

    Those are all in the topmost package: in its folder, in the folders on the way to the module,
    and in all packages (folders with `__init__.py`) below. Nothing of them is imported.

    Returns:
        By name, as `my_study/nets.py`, sorted; none where the code is ours or installed, or cannot
        be found.
    """
    first, *rest = path.split(".")
    if first == OURS.name:
        return {}
    try:
        spec = importlib.util.find_spec(first) if first.isidentifier() else None
    except (ImportError, ValueError):
        return {}
    if spec is None:
        return {}
    if spec.submodule_search_locations is None:
        file = Path(spec.origin) if spec.origin else None
        return {file.name: file} if file is not None and is_own(file) else {}
    files: dict[str, Path] = {}
    for folder in map(Path, spec.submodule_search_locations):
        if is_own(folder / "__init__.py"):
            for each in _sources(folder, rest):
                files[f"{first}/{each.relative_to(folder).as_posix()}"] = each
    return dict(sorted(files.items())[:_MOST_FILES])


def _sources(folder: Path, way: Sequence[str]) -> Iterator[Path]:
    """Yield a package's modules, and those of the packages below and of the way to a module."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".py" and entry.is_file() and entry.stat().st_size <= _LARGEST:
            yield entry
        elif entry.is_dir() and not entry.is_symlink():
            on_the_way = bool(way) and entry.name == way[0]
            if on_the_way or (entry / "__init__.py").is_file():
                yield from _sources(entry, way[1:] if on_the_way else ())


def digests(paths: Iterable[str]) -> dict[str, str]:
    """Return a digest of the own code of each topmost package that some dotted paths name."""
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        files = code_of(path)
        if files:
            found.setdefault(path.partition(".")[0], {}).update(files)
    return {package: _digest(files) for package, files in sorted(found.items())}


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return f"sha256:{digest.hexdigest()}"


@functools.cache
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(paths[name]).resolve() for name in names})


def is_own(file: str | Path) -> bool:
    """Return whether a file of Python is somebody's own code: not ours, not installed."""
    path = Path(file)
    if str(file).startswith("<") or "site-packages" in path.parts:
        return False
    path = path.resolve()
    return not any(path.is_relative_to(each) for each in (OURS, *_installed()))


def position(error: BaseException) -> str:
    """Return where in own code an exception arose, as `nets.py, line 12`; empty if elsewhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(error.filename)}, line {error.lineno}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if is_own(each.filename)]
    return f"{shown(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""


def shown(file: str | Path) -> str:
    """Return a file's path, relative to the folder of the command where it lies below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def passed_own_code(error: BaseException) -> bool:
    """Return whether an exception arose in own code, or in what that called."""
    return bool(position(error)) and not isinstance(error, SyntaxError)


def format_exception(error: BaseException) -> str:
    """Return a traceback as text; of one that passed own code, from there on and without ours."""
    if not passed_own_code(error):
        return "".join(traceback.format_exception(error))
    frames = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    own = [is_own(each.tb_frame.f_code.co_filename) for each in frames]
    kept = [
        each
        for each in frames[own.index(True) :]
        if not Path(each.tb_frame.f_code.co_filename).is_relative_to(OURS)
    ]
    shortened: TracebackType | None = None
    for each in reversed(kept):
        shortened = TracebackType(shortened, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return "".join(traceback.format_exception(type(error), error, shortened))
