from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib.image
from rich.console import Console

from flair2_exp.report.page import headline, print_report, summary
from flair2_exp.report.results import Report
from flair2_exp.report.tables import tables
from tests.report.made_runs import HOSTILE


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


def test_the_summary_gives_the_best_row_then_the_findings(
    written: tuple[Report, Path],
) -> None:
    report, _ = written
    lines = summary(report).splitlines()
    assert lines[0].startswith(r"**best: \<b>a\|b\</b> $x_1$ [red\](http://evil) \*, mIoU 0.")
    assert lines[0].endswith("synthetic sample data")
    assert sum("95 % interval" in line for line in lines[2:4]) == 2
    assert "| unet | 2 |" in "\n".join(lines)
    assert any("utt, seed 3: failed (exit status 1)" in line for line in lines)
    numbers = headline(report)
    assert numbers == {"best/miou": max(row.miou.value or 0 for row in report.rows)}


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
    assert not {"script", "link", "iframe"} & set(names)
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    folders = [link for link in links if not link.startswith("#")]
    assert len(folders) == 6
    assert all((out / unquote(link)).is_dir() for link in folders)
    # MLflow shows a page in a frame that lets no link out: the path itself is there to be copied.
    copied = re.findall('<span class="copy">([^<]+)</span>', content)
    assert all(Path(each).is_dir() and Path(each).is_absolute() for each in copied)
    assert len(copied) == 6
    assert "Synthetic sample data" in page.text
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 4
    for picture in pictures:
        kind, encoded = picture.split(",", 1)
        assert kind == "data:image/png;base64"
        assert matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded))).shape[2] == 4
    assert not any("src" in attributes for tag, attributes in page.tags if tag != "img")


def test_each_column_of_scores_is_explained_where_it_stands(
    written: tuple[Report, Path],
) -> None:
    report, out = written
    page = Page()
    page.feed((out / "leaderboard.html").read_text())
    for table in tables(report)[:2]:
        assert table.about.keys() == set(table.heads)
        assert all(f": {what}." in page.text for what in table.about.values())
    assert "of the whole test set" in page.text


def test_terminal_shows_rows_findings_and_notes(written: tuple[Report, Path]) -> None:
    console = Console(file=io.StringIO(), width=220)
    print_report(written[0], console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert HOSTILE in text
    assert "2 of 3 (seed 3: failed)" in text
    assert "joint over 3 comparisons" in text
    assert "Synthetic sample data" in text


def test_tables_by_class_and_domain_of_many_rows_have_a_line_per_row(
    written: tuple[Report, Path],
) -> None:
    report, _ = written
    many = dataclasses.replace(report, rows=report.rows * 3)
    for name in ("classes", "domains"):
        few_table, table = ({each.name: each for each in tables(of)}[name]
                            for of in (report, many))  # fmt: skip
        assert len(few_table.heads) < len(table.heads) + len(table.cells)
        assert [line[0] for line in table.cells[-9:]] == [row.name for row in many.rows]
        assert table.heads[1:] == [line[0] for line in few_table.cells]
        column = few_table.heads.index("utt")
        assert table.cells[-8][1:] == [line[column] for line in few_table.cells]
        assert {len(line) for line in table.cells} == {len(table.heads)}
