"""A project of one's own, as a new user gets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import answer
from tests.configs import SMALL_SAMPLE


def test_a_project_has_its_name_everywhere_and_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = answer("new", "crops")
    assert told.status == 0, told.err
    assert "--config-dir crops/conf model=my_net" in told.out
    files = [path for path in (tmp_path / "crops").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".py", ".yaml", ".md"}
    assert (tmp_path / "crops" / ".gitignore").is_file()
    for path in files:
        assert "my_study" not in path.read_text()
    assert "_target_: crops.nets.MyNet" in (tmp_path / "crops/conf/model/my_net.yaml").read_text()
    shown = answer("--config-dir", "crops/conf", "model=my_net", "loss=my_loss", "--cfg", "job")
    assert shown.status == 0, shown.err


def test_verbs_find_a_project_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer("new", str(tmp_path / "meadows")).status == 0
    monkeypatch.chdir("/")
    told = answer(
        "check-model", "--no-compare", "--config-dir", str(tmp_path / "meadows" / "conf"),
        "model=my_net", "dataset.sample.patch_size=32",
    )  # fmt: skip
    assert told.status == 0, told.err
    assert "independent samples" in told.out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-study", "as my_study"),
        ("2nd", "use letters, digits and _"),
        ("class", "not a name that Python imports"),
        ("torch", "a module of that name"),
        ("flair2_exp", "a module of that name"),
        ("full", "something of that name already"),
    ],
)
def test_a_name_that_does_not_serve_is_refused_and_nothing_written(
    name: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    told = answer("new", str(tmp_path / name))
    assert (told.status, told.err.count("\n")) == (1, 1)
    assert message in told.err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "notes.txt"]


@pytest.mark.thorough
def test_the_commands_of_the_projects_readme_run(tmp_path: Path) -> None:
    assert answer("new", str(tmp_path / "crops")).status == 0
    readme = (tmp_path / "crops" / "README.md").read_text()
    commands = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
    commands = [line for line in commands if line.startswith(("python -m", "flair2-exp"))]
    assert len(commands) == 6
    for line in commands:
        words = line.replace("flair2-exp", "python -m flair2_exp").split()[1:]
        if "dataset=flair2" in words:  # needs the data; composed alone
            words += ["--cfg", "job"]
        elif "preset=tiny" in words:
            words += ["trainer.max_epochs=1", "tracking=off", *SMALL_SAMPLE]
            words = [word.replace("seed=1,2,3", "seed=1") for word in words]
            words += ["tune.n_trials=1"] if "tune=my_net" in words else []
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    rows = (tmp_path / "multirun" / "mine" / "report" / "leaderboard.md").read_text()
    assert "my_net_my_loss" in rows
    assert "unet_cross_entropy" in rows
