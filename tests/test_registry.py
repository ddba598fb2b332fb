"""From a dotted path and options to a part, and what a user is told where that fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.projects import make_importable
from flair2_exp.registry import construct, locate


class Base:
    """What parts derive from here."""


@dataclass
class Window:
    """A node of options."""

    size: int
    share: float = 0.5


class Part(Base):
    """A part with an option of each kind."""

    def __init__(
        self,
        optimizer: str,
        *,
        steps: int = 3,
        rate: float | None = 0.1,
        kind: Literal["fast", "slow"] = "fast",
        widths: tuple[int, ...] = (1, 2),
        window: Window | None = None,
        free: Any = None,
    ) -> None:
        self.made = (optimizer, steps, rate, kind, widths, window, free)


class Needy(Base):
    """A part that cannot do without a value."""

    def __init__(self, depth: int) -> None:
        self.depth = depth


class Open(Base):
    """A part that takes whatever it is given."""

    def __init__(self, **options: Any) -> None:
        self.options = options


def _made(name: str = "Part", **options: Any) -> Any:
    given = {"optimizer": "sgd", "epochs": 7}
    return construct(Base, f"{__name__}.{name}", "node.options", given=given, options=options)


def test_a_part_is_given_what_it_has_arguments_for_and_its_options_are_converted() -> None:
    part = _made(steps=5, rate=None, widths=[3, 4], window={"size": 2}, free=[1])
    assert part.made == ("sgd", 5, None, "fast", (3, 4), Window(2), [1])
    assert _made("Open", anything=1).options == {"anything": 1}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Part", {"stepps": 1}, r"node\.options\.stepps: Part .* no such option; .* steps"),
        ("Part", {"steps": "many"}, r"node\.options\.steps=many: input should be a valid integer"),
        ("Part", {"steps": 1.5}, r"node\.options\.steps=1\.5: .*integer"),
        ("Part", {"kind": "medium"}, r"node\.options\.kind=medium: .*'fast' or 'slow'"),
        ("Part", {"widths": [1, "x"]}, r"node\.options\.widths\.1=x: .*integer"),
        ("Part", {"window": {"size": "x"}}, r"node\.options\.window\.size=x: .*integer"),
        ("Part", {"window": {"share": 1.0}}, r"node\.options\.window\.size.*[Rr]equired"),
        ("Part", {"optimizer": "adam"}, r"node\.options\.optimizer: Part .* is given its optimi"),
        ("Needy", {}, r"node\.options\.depth has no value, and Needy .* needs it: .*\+node"),
    ],
    ids=str,
)
def test_an_option_that_does_not_fit_is_explained_with_the_class_and_its_place(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        _made(name, **options)
    assert f"{Path(__file__).name}, line " in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "registry_study"
    folder.mkdir()
    (folder / "conf").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    make_importable(folder / "conf")
    yield folder
    for name in [each for each in sys.modules if each.split(".")[0] == folder.name]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("class A: pass", "registry_study.nets.Aa", "registry_study.nets has no Aa; did .* A?"),
        ("class A: pass", "registry_study.netz.A", "registry_study has no netz"),
        ("class A: pass", "registry_studies.nets.A", "no module registry_studies; .*--config-dir"),
        ("class A: pass", "registry_study.nets.A", "not such a class"),
        ("import absent", "registry_study.nets.A", r"No module named 'absent' \(.*nets\.py, line"),
        ("x = 1 / 0", "registry_study.nets.A", r"ZeroDivisionError: .* \(.*nets\.py, line 1\)"),
        ("def f(:", "registry_study.nets.A", r"SyntaxError: .* \(.*nets\.py, line 1\)"),
        ("class A: pass", "A", "not a dotted path"),
        ("class A: pass", "os.system", "not such a class"),
    ],
    ids=str,
)
def test_a_path_that_leads_to_no_class_is_explained_in_two_lines(
    project: Path, source: str, path: str, message: str
) -> None:
    (project / "nets.py").write_text(source)
    with pytest.raises(ConfigError, match=message) as refusal:
        locate(path, Base, "model._target_")
    first, second = str(refusal.value).splitlines()
    assert first.startswith(f"model._target_={path}: ")
    assert second == f"Expected the dotted path of a class derived from {__name__}.Base."
