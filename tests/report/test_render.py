from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from rich.console import Console

from flair2_exp.errors import ConfigError, DataError
from flair2_exp.nomenclature import CLASSES_13
from flair2_exp.report import AbsentRun, Report, Run, build_report, figures, render, report_runs
from tests.report.made_runs import make_runs

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<b>a|b</b> $x_1$ [red](http://evil) *"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    skills = {"unet": 1.0, "utt": 1.2, "utt_months": 1.6}
    made = make_runs(tmp_path_factory.mktemp("runs"), skills, seeds=2, areas=12)
    return [
        dataclasses.replace(run, row=HOSTILE) if run.row == "utt_months" else run for run in made
    ]


@pytest.fixture(scope="module")
def written(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("report")
    absent = [AbsentRun("utt", 3, "failed", "exit status 1")]
    formats = ("md", "csv", "json", "png", "svg", "html")
    return report_runs(runs, out, formats, absent=absent, resamples=200), out


def test_all_files_are_told_and_there(written: tuple[Report, Path]) -> None:
    report, out = written
    names = {path.name for path in report.paths}
    drawn = {"forest", "iou_by_class", "confusion", "learning_curves"}
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")} | {
        "leaderboard.md", "leaderboard.csv", "iou_by_class.csv", "differences.csv",
        "leaderboard.json", "leaderboard.html",
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == names  # no part of a file is left


def test_json_holds_the_report(written: tuple[Report, Path]) -> None:
    report, out = written
    content = json.loads((out / "leaderboard.json").read_text())
    assert content["schema"] == 1
    assert [row["row"] for row in content["rows"]] == ["unet", "utt", HOSTILE]
    assert content["rows"][0]["miou"]["value"] == report.rows[0].miou.value
    assert content["rows"][1]["absent"] == [
        {"seed": 3, "state": "failed", "reason": "exit status 1"}
    ]
    assert content["differences"][0]["classes"]["water"]["p"] is not None
    assert np.array(content["rows"][0]["confusion"]).sum() == report.rows[0].confusion.sum()
    assert content["comparisons"] == 3
    described = render.__doc__ or ""
    for key in [*content, *content["rows"][0], *content["differences"][0]]:
        assert re.search(rf"\b{key}\b", described), f"{key} is not in the schema"


def test_csv_holds_unrounded_figures(written: tuple[Report, Path]) -> None:
    report, out = written
    with (out / "leaderboard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["unet", "utt", HOSTILE]
    assert float(lines[0]["miou_value"]) == report.rows[0].miou.value
    assert lines[1]["absent"] == "3 failed"
    assert lines[0]["published"] == ""
    with (out / "differences.csv").open(newline="") as file:
        differences = list(csv.DictReader(file))
    assert len(differences) == 3 * 13
    assert float(differences[0]["p_holm"]) == report.differences[0].p_holm
    with (out / "iou_by_class.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 12


def test_markdown_tables_have_equal_columns_and_images_exist(
    written: tuple[Report, Path],
) -> None:
    _, out = written
    text = (out / "leaderboard.md").read_text()
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("| ---"):
            columns = line.count("|")
            table = [lines[at - 1]]
            while lines[at + len(table)].startswith("|"):
                table.append(lines[at + len(table)])
            assert all(len(re.findall(r"(?<!\\)\|", row)) == columns for row in table)
    assert "\\<b>" in text
    assert "](http" not in text.replace("\\](http", "")
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(images) == 4
    assert all((out / image).is_file() for image in images)


def test_the_parents_page_tells_the_best_row_then_the_findings(
    written: tuple[Report, Path],
) -> None:
    report, _ = written
    lines = render.page(report).splitlines()
    assert lines[0].startswith(f"**best: {render._plain(HOSTILE)}, mIoU 0.")
    assert lines[0].endswith("synthetic sample data")
    assert sum("95 % interval" in line for line in lines[2:4]) == 2
    assert "| unet | 2 |" in "\n".join(lines)
    assert any("utt, seed 3: failed (exit status 1)" in line for line in lines)
    figures = render.headline(report)
    assert figures["best/miou"] == max(row.miou.value or 0 for row in report.rows)
    assert figures["miou/unet"] == report.row("unet").miou.value


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_well_formed_and_needs_no_network(written: tuple[Report, Path]) -> None:
    _, out = written
    page = Page()
    content = (out / "leaderboard.html").read_text()
    page.feed(content)
    assert page.open == []
    # Paper does not scroll: what lies beyond its edge would be lost.
    assert ".scroll { overflow: visible; }" in content.partition("@media print")[2]
    assert HOSTILE in page.text
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "b", "a"} & set(names)
    assert "Synthetic sample data." in page.text
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4
    for picture in pictures:
        kind, encoded = picture.split(",", 1)
        assert kind == "data:image/png;base64"
        assert matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded))).shape[2] == 4
    assert not any("src" in attributes for tag, attributes in page.tags if tag != "img")


def test_figures_are_pictures(written: tuple[Report, Path]) -> None:
    _, out = written
    for name in ("forest", "iou_by_class", "confusion", "learning_curves"):
        pixels = matplotlib.image.imread(out / f"{name}.png")
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.02
        tree = ElementTree.parse(out / f"{name}.svg")
        assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
        links = [value for one in tree.iter() for key, value in one.items() if "href" in key]
        assert all(link.startswith(("#", "data:")) for link in links)


def test_same_report_gives_same_bytes(
    runs: list[Run], written: tuple[Report, Path], tmp_path: Path
) -> None:
    absent = [AbsentRun("utt", 3, "failed", "exit status 1")]
    formats = ("json", "csv", "md", "svg")
    again = report_runs(runs, tmp_path, formats, absent=absent, resamples=200)
    for path in again.paths:
        if path.suffix != ".md":  # without PNG it shows no images
            assert path.read_bytes() == (written[1] / path.name).read_bytes(), path.name


def test_terminal_shows_rows_findings_and_notes(written: tuple[Report, Path]) -> None:
    console = Console(file=io.StringIO(), width=220)
    render.print_report(written[0], console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert HOSTILE in text
    assert "2 of 3 (seed 3: failed)" in text
    assert "Holm over 3 comparisons" in text
    assert "Synthetic sample data" in text


def test_forest_shows_the_reports_intervals(written: tuple[Report, Path]) -> None:
    report, _ = written
    left, right = figures.forest(report).axes
    spans = [tuple(line.get_xdata()) for line in left.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    for row in report.rows:
        assert (row.miou.low, row.miou.high) in spans
    drawn = [tuple(line.get_xdata()) for line in right.lines]  # type: ignore[arg-type]
    for row in report.rows[1:]:
        assert row.against_baseline is not None
        assert (row.against_baseline.miou.low, row.against_baseline.miou.high) in drawn


def test_classes_have_their_colours(written: tuple[Report, Path]) -> None:
    (axes,) = figures.iou_by_class(written[0]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        one.name for one in CLASSES_13[:12]
    ]
    swatches = [
        line for line in axes.lines if line.get_marker() == "s" and len(line.get_xdata()) == 1
    ]  # type: ignore[arg-type]
    colours = {to_hex(line.get_color()) for line in swatches}  # type: ignore[arg-type]
    assert {one.colour for one in CLASSES_13[:12]} <= colours


def test_confusion_shows_shares_of_the_true_class(written: tuple[Report, Path]) -> None:
    report, _ = written
    axes = figures.confusion(report).axes
    first = np.asarray(axes[0].images[0].get_array())
    np.testing.assert_allclose(first.sum(axis=1), 100)
    assert axes[0].get_title(loc="left") == "unet"
    change = np.asarray(axes[2].images[0].get_array())
    second = np.asarray(axes[1].images[0].get_array())
    np.testing.assert_allclose(change, second - first)


def test_learning_curves_average_the_epochs_that_all_seeds_reached() -> None:
    curves = [[(1.0, 0.1), (2.0, 0.3), (3.0, 0.5)], [(1.0, 0.2), (2.0, 0.5)]]
    epochs, mean, low, high = figures._mean_curve(curves)
    assert epochs == [1.0, 2.0]
    assert mean == pytest.approx([0.15, 0.4])
    assert (low, high) == ([0.1, 0.3], [0.2, 0.5])


def test_report_of_many_rows_and_factors_is_drawn(tmp_path: Path) -> None:
    cells = {f"c{f}{m}{a}": (f, m, a) for f in (0, 1) for m in (0, 1) for a in (0, 1)}
    runs = make_runs(tmp_path / "runs", dict.fromkeys(cells, 1.0), seeds=1, areas=6)
    set_up = [
        dataclasses.replace(
            run,
            settings={
                "s2_preproc.cloud_filter": str(bool(cells[run.row][0])).lower(),
                "s2_preproc.monthly": str(bool(cells[run.row][1])).lower(),
                "aug.geometry": "flips" if cells[run.row][2] else "none",
            },
        )
        for run in runs
    ]
    report = report_runs(
        set_up, tmp_path / "out", ["png", "csv", "json", "md"], factors=[], resamples=200
    )
    names = {path.name for path in report.paths}
    assert {"effects.png", "iou_by_class.png", "factors.csv"} <= names
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert len(content["factorial"]["effects"]) == 6
    assert content["factorial"]["over_seeds"]["freedom"] == 1
    assert "## Factors" in (tmp_path / "out" / "leaderboard.md").read_text()


@pytest.mark.parametrize("more", [0, 12])
def test_nothing_is_cut_off_or_printed_over(tmp_path: Path, more: int) -> None:
    cells = [(flips, on) for flips in ("none", "flips") for on in ("false", "true")]
    names = [f"utt_raw_{flips}_metadata_{on}".ljust(26 + more, "x") for flips, on in cells]
    runs = [
        dataclasses.replace(run, settings={"aug.geometry": flips, "metadata.enabled": on})
        for run, (flips, on) in zip(
            make_runs(tmp_path, dict.fromkeys(names, 1.0), seeds=1), cells, strict=True
        )
    ]
    drawn = figures.figures(build_report(runs, factors=[], resamples=200))
    assert set(drawn) >= {"forest", "effects", "confusion", "iou_by_class", "learning_curves"}
    for figure in drawn.values():
        renderer = FigureCanvasAgg(figure).get_renderer()
        inches = figure.get_tightbbox(renderer)
        width, height = figure.get_size_inches()
        assert 0 <= inches.x0 < inches.x1 <= width
        assert 0 <= inches.y0 < inches.y1 <= height
    left, right = (axes.get_tightbbox() for axes in drawn["forest"].axes)
    assert left.x1 < right.x0


def test_report_without_curves_or_intervals_is_written(runs: list[Run], tmp_path: Path) -> None:
    counts = runs[0].counts
    one = dataclasses.replace(counts, areas=counts.areas[:1], confusion=counts.confusion[:1])
    bare = dataclasses.replace(runs[0], counts=one, curves={}, metrics={})
    formats = ("md", "csv", "json", "png", "html")
    report = report_runs([bare], tmp_path, formats, resamples=200)
    assert report.rows[0].miou.low is None
    assert "learning_curves.png" not in {path.name for path in report.paths}
    content = json.loads((tmp_path / "leaderboard.json").read_text())
    assert content["rows"][0]["miou"]["low"] is None
    assert content["rows"][0]["train_seconds"] is None


def test_unknown_format_is_refused_before_anything_is_written(
    runs: list[Run], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="format pdf is not one of terminal, md"):
        report_runs(runs, tmp_path / "out", ["md", "pdf"])
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_is_told(runs: list[Run], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        report_runs(runs, tmp_path / "file", ["csv"], resamples=200)


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "leaderboard.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_script_reports_run_folders(tmp_path: Path) -> None:
    make_runs(tmp_path / "sweep", {"unet": 1.0, "utt": 1.5}, seeds=2, areas=6)
    done = script(
        "--folders", str(tmp_path / "sweep"), "--format", "md,terminal", "--resamples", "200",
        "--out", str(tmp_path / "out"), "--baseline", "utt",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unet − utt" in done.stdout
    assert (tmp_path / "out" / "leaderboard.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--folders", "nowhere"], "no run folder"),
        (["--tag", "x"], "--tag x is not KEY=VALUE"),
    ],
)
def test_script_tells_a_mistake_in_a_line(arguments: list[str], told: str) -> None:
    done = script(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
