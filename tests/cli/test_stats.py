"""The verb `stats`: what a run with the same words would be normalised and weighted by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import answer
from tests.configs import SMALL_SAMPLE


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return ("stats", f"paths.root={tmp_path}", *SMALL_SAMPLE, "model=unet", "data.workers=0")


def test_it_prints_bands_and_classes_and_the_second_time_reads_what_is_kept(
    line: tuple[str, ...], tmp_path: Path
) -> None:
    bands = "data.bands=[nir,green,red]"
    first = answer(*line, bands, "--json")
    assert first.status == 0, first.err
    values = json.loads(first.out)
    assert values["image"]["bands"] == ["nir", "green", "red"]
    assert values["series"] is None
    assert sum(values["pixels"].values()) == values["patches"] * 64 * 64
    (kept,) = (tmp_path / "cache" / "flair2_exp").glob("statistics-*.json")
    kept.write_text(json.dumps(values | {"patches": 77}))
    again = answer(*line, bands)
    assert "77 training patches" in again.out
    assert "deciduous" in again.out
    assert "nir" in again.out
    assert "training patches" not in first.err


def test_a_share_of_the_labels_has_statistics_of_its_own(line: tuple[str, ...]) -> None:
    whole, half = (
        json.loads(answer(*line, f"split.label_fraction={share}", "--json").out)["patches"]
        for share in (1, 0.5)
    )
    assert half == round(whole / 2)


@pytest.mark.parametrize(
    ("words", "status"),
    [(("sweep=quirks",), 2), (("model=unett",), 1), (("--fast",), 2), (("data.bands=[rde]",), 1)],
)
def test_mistakes_are_explained_as_a_runs_are(
    line: tuple[str, ...], words: tuple[str, ...], status: int
) -> None:
    told = answer(*line, *words)
    assert told.status == status
    assert told.err.startswith("flair2-exp: ")
    assert told.err.count("\n") <= 2
