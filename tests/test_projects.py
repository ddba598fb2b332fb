"""A user's own code: found, digested, and alone in the tracebacks of its own mistakes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.projects import (
    code_of,
    digests,
    format_exception,
    is_own,
    make_importable,
    passed_own_code,
)
from flair2_exp.values import flatten


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "some" / "own_study"
    for name, text in {
        "nets.py": "WIDTH = 3\n",
        "parts/__init__.py": "",
        "parts/blocks.py": "DEPTH = 2\n",
        "loose/heads.py": "HEADS = 4\n",
        "outputs/code.py": "raise AssertionError('not a package')\n",
        "conf/model/net.yaml": "name: net\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "some" / "plotly_like").mkdir()  # what else lies beside a project
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    make_importable(folder / "conf")
    yield folder
    for name in [each for each in sys.modules if each.split(".")[0] in ("own_study", "nets")]:
        del sys.modules[name]


def test_a_project_is_importable_by_its_name_and_its_modules_by_theirs(study: Path) -> None:
    assert importlib.import_module("own_study.nets").WIDTH == 3
    assert importlib.import_module("own_study.parts.blocks").DEPTH == 2
    assert importlib.import_module("nets").WIDTH == 3
    assert importlib.util.find_spec("plotly_like") is None
    before = len(sys.meta_path), len(sys.path)
    make_importable(study / "conf")
    assert (len(sys.meta_path), len(sys.path)) == before


def test_the_code_of_a_class_is_its_whole_package_and_nothing_beside(study: Path) -> None:
    package = {"own_study/nets.py", "own_study/parts/__init__.py", "own_study/parts/blocks.py"}
    assert set(code_of("own_study.nets.Net")) == package
    assert set(code_of("own_study.loose.heads.Net")) == package | {"own_study/loose/heads.py"}
    assert set(code_of("nets.Net")) == {"nets.py"}
    for path in ("torch.nn.Conv2d", "flair2_exp.models.aerial.AerialSegmenter", "json.JSONDecoder"):
        assert code_of(path) == {}
    assert code_of("absent.Net") == {}
    assert code_of("") == {}
    assert "own_study" not in sys.modules  # nothing was imported for it


def test_the_digest_changes_with_any_file_of_the_package_and_with_nothing_else(
    study: Path,
) -> None:
    paths = ["own_study.nets.Net", "torch.nn.Conv2d"]
    first = digests(paths)
    assert set(first) == {"own_study"}
    (study / "conf" / "model" / "net.yaml").write_text("name: other\n")
    (study / "outputs" / "more.py").write_text("")
    assert digests(paths) == first
    (study / "parts" / "blocks.py").write_text("DEPTH = 3\n")
    assert digests(paths) != first


def test_a_traceback_of_own_code_shows_it_alone(study: Path) -> None:
    (study / "fails.py").write_text(
        "def visit(value):\n    inner(value)\n\ndef inner(value):\n    value.append(1)\n"
    )
    fails = importlib.import_module("own_study.fails")

    class Mapping(dict[str, int]):
        def items(self) -> Any:
            fails.visit(None)

    with pytest.raises(AttributeError) as failure:
        flatten({"a": Mapping(b=1)})  # ours calls theirs
    assert passed_own_code(failure.value)
    text = format_exception(failure.value)
    assert "own_study/fails.py" in text
    assert "flair2_exp/values.py" not in text
    assert text.endswith("AttributeError: 'NoneType' object has no attribute 'append'\n")


def test_what_is_installed_or_ours_or_in_no_file_is_not_own_code() -> None:
    assert not is_own(importlib.import_module("flair2_exp.values").__file__ or "")
    assert not is_own("<string>")
    assert not is_own(importlib.import_module("torch").__file__ or "")
    assert not is_own(importlib.import_module("json").__file__ or "")
    assert is_own(__file__)
