"""The pages keep their word: their commands run, their links lead somewhere, nothing is left out.

A block of `bash` on a page is executed, each command in a folder of the page's own, on the smallest
sample: a training as `preset=debug`, a sweep or a search as its plan or its config, a verb as it
stands (`RUN` is the page's newest run). A block that begins with `# needs …` or `# takes …` is
composed and its flags are looked up, but nothing is run.
"""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from flair2_exp.cli.verbs import VERBS
from flair2_exp.config.groups import config_folder, option_names, options_of
from flair2_exp.lifecycle.folder import run_folders
from flair2_exp.tracking.tags import Tag
from tests.commands import Answer, answer
from tests.configs import SMALL_SAMPLE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = [page for page in PAGES if not {"_build", "generated"} & {*page.parts}]
ENCODER = "model.encoder=tu-tf_mobilenetv3_small_minimal_100"  # that of preset=tiny
SMALL = (*SMALL_SAMPLE, "trainer=cpu", "data.workers=0", ENCODER)
"""Appended to each training: the smallest that runs all of it."""


@dataclass(frozen=True)
class Command:
    """A command of a page, without its program."""

    words: tuple[str, ...]
    runs: bool

    @property
    def verb(self) -> str | None:
        return self.words[0] if self.words and self.words[0] in VERBS else None

    @property
    def is_many(self) -> bool:
        many = {"-m", "--multirun"} & {*self.words}
        return bool(many) or any(word.startswith(("sweep=", "tune=")) for word in self.words)

    def given(self, name: str) -> bool:
        """Whether an option or a group is set, with or without a `+`."""
        return any(word.lstrip("+").startswith(f"{name}=") for word in self.words)


def blocks(page: Path) -> Iterator[list[str]]:
    """The lines of a page's blocks of `bash`, continued ones joined."""
    for text in re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        yield text.replace("\\\n", " ").splitlines()


def commands(page: Path) -> Iterator[Command]:
    """The commands of this package on a page."""
    for lines in blocks(page):
        runs = not re.match(r"# (needs|takes) ", lines[0])
        for line in lines:
            words = shlex.split(line, comments=True)
            if words[:1] == ["flair2-exp"]:
                yield Command(tuple(words[1:]), runs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_other_commands_of_a_page_are_there(page: Path) -> None:
    """`make` targets and scripts; what else a shell has is not ours."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    for line in (line for lines in blocks(page) for line in lines):
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert words[0] in targets, line
        elif program == "python":
            assert words[0] == "-m" or (ROOT / words[0]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_leaves_to_real_data_composes(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        if not command.runs:
            looked_up(command)


def looked_up(command: Command) -> None:
    """Hold a command to what there is: options, choices, verbs and their flags."""
    if command.verb is not None:
        made = VERBS[command.verb].command
        if isinstance(made, click.Command):
            flags = {flag for each in made.params for flag in (*each.opts, *each.secondary_opts)}
            used = {word.partition("=")[0] for word in command.words if word.startswith("--")}
            assert used <= flags, command
        return
    if any(word.endswith(".yaml") or word.startswith("resume=") for word in command.words):
        return  # of a file or a folder that an earlier command writes
    words = [word for word in command.words if word not in ("-m", "--multirun")]
    if command.is_many:  # one job of it: the first of all values, without options of the whole
        own = {w.partition("=")[0] for w in words if w.startswith(("sweep.", "tune."))}
        assert own <= {*option_names()}, command
        words = [word for word in words if word.partition("=")[0] not in own]
        words = [re.sub(r"^([\w./]+=[^\[{',]*),.*", r"\1", word) for word in words]
    shown = answer(*words, *(() if "--cfg" in words else ("--cfg", "job")))
    assert shown.status == 0, (command, shown.err)


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(each.runs for each in commands(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)  # fmt: skip
def test_the_commands_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLAIR2_EXP_ROOT", raising=False)
    for command in commands(page):
        if command.runs:
            done = executed(command)
            assert done.status == 0, (command, done.out[-2000:], done.err[-2000:])


def executed(command: Command) -> Answer:
    words = list(command.words)
    if words[:1] == ["run"]:  # the verb that may be omitted
        return executed(Command(command.words[1:], command.runs))
    if command.verb is not None:
        if "RUN" in words:
            newest = max(run_folders(Path("outputs")), key=lambda run: run.config.stat().st_mtime)
            words = [str(newest) if word == "RUN" else word for word in words]
        if command.verb == "check-model":
            words.append("dataset.sample.patch_size=64")
        return answer(*words)
    if {"--help", "--cfg", "--info", "--version"} & {*words}:
        return answer(*words)
    if command.is_many:
        if command.given("tune"):
            return answer(*words, "--cfg", "job")
        return answer(*words, *(() if command.given("sweep.dry_run") else ("sweep.dry_run=true",)))
    words = [word for word in words if not word.startswith("preset=")]
    small = [each for each in SMALL if not command.given(each.partition("=")[0])]
    plain = {"model=unet", "model=utt"}
    if command.given("model") and not plain & {*words}:  # of another encoder, or without any
        small = [each for each in small if not each.startswith("model.encoder=")]
    return answer("preset=debug", *words, *small)


def test_the_reference_leaves_out_no_option_verb_choice_or_tag() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        generated = importlib.import_module("generated")
    finally:
        sys.path.remove(str(ROOT / "docs"))
    options, verbs, groups = generated.options(), generated.verbs(), generated.groups()
    nodes = {"callbacks", "tracking.loggers", "metric.further"}
    assert not [n for n in option_names() if f"| `{n}` |" not in options and n not in nodes]
    assert not [name for name in VERBS if f"## {name}\n" not in verbs]
    assert not [tag for tag in Tag if f"| `{tag}` |" not in generated.tags()]
    for group in config_folder().iterdir():
        if group.is_dir() and group.name != "hydra":
            choices = options_of(group)
            assert not [each for each in choices if f"| `{group.name}={each}` |" not in groups]
    # Each row says what its option, choice, file or tag means.
    for text in (options, groups, generated.run_files(), generated.tags()):
        rows = [line for line in text.splitlines() if line.startswith("| `")]
        assert not [row for row in rows if re.search(r"\| +\|", row)]
    # Bounds and words as they are declared, read here from the page a reader sees.
    assert "| `data.batch_size` | whole number, 1 to 100000 | `10` |" in options
    assert "| `data.normalisation` | `none`, `imagenet`, `dataset` | `none` |" in options


def test_links_of_the_readme_and_of_pages_lead_somewhere() -> None:
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), (page, target)


def test_the_notebook_is_the_page_of_its_name() -> None:
    jupytext = pytest.importorskip("jupytext")
    page, notebook = (ROOT / "docs" / "notebooks" / f"flair2.{kind}" for kind in ("md", "ipynb"))
    cells = [
        [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]
        for path in (page, notebook)
    ]
    assert cells[0] == cells[1], "make notebook"
    assert not [cell for cell in jupytext.read(notebook).cells if cell.get("outputs")]


def test_a_clone_of_the_pages_holds_no_path_of_a_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "docs", "README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in (name for name in listed if name.endswith((".md", ".py", ".ipynb"))):
        assert str(Path.home()) + "/" not in (ROOT / name).read_text("utf-8"), name
