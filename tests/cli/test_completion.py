"""The TAB key: what it offers, and in a real shell what it types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flair2_exp.cli.completion import completions, script
from flair2_exp.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]


def offered(line: str) -> list[str]:
    return [item.value for item in completions(f"flair2-exp {line}")]


@pytest.fixture(autouse=True)
def _with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "last.ckpt").touch()
    (tmp_path / "runs" / "my run").mkdir()
    (tmp_path / "runs" / "my run" / "run.json").touch()
    (tmp_path / ".hidden").mkdir()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ex", ["export", "experiment="]),
        ("run ex", ["experiment="]),
        ("-m sweep=fa", ["sweep=factors"]),
        ("--multirun model=unet,ut", ["model=unet,utae", "model=unet,utt"]),
        ("~sche", ["~scheduler=", "~scheduler."]),
        ("seed=1 experiment=leaderboard/utt", ["experiment=leaderboard/utt"]),
        ("model.encoder", ["model.encoder=", "model.encoder_weights="]),
        ("dataset.sa", ["dataset.sample."]),
        ("train=", ["train=false", "train=true"]),
        ("data.normalisation=no", ["data.normalisation=none"]),
        ("checkpoint=", ["checkpoint=runs/"]),
        ("checkpoint=runs/l", ["checkpoint=runs/last.ckpt"]),
        ("dataset.root=./r", ["dataset.root=./runs/"]),
        ("resu", ["resume="]),
        ("run resume=", ["resume=runs/"]),
        ("resume=runs/", ["resume=runs/my run"]),
        ("hydra.run.dir=", ["hydra.run.dir=runs/"]),
        ("seed=", []),
        ("--cf", ["--cfg"]),
        ("--cfg j", ["--cfg job"[6:]]),
        ("--config-dir ", ["runs/"]),
        ("predict runs/l", ["runs/last.ckpt"]),
        ("predict runs --image r", ["runs/"]),
        ("predict runs --tta ", ["none", "flips", "d4"]),
        ("export runs --form", ["--format"]),
        ("stats model=utt --js", ["--json"]),
        ("stats model=utt data.workers=1 split=off", ["split=official"]),
        ("check r", ["runs/"]),
        ("show r", ["runs/"]),
        ("compare runs r", ["runs/"]),
        ("rerun r", ["runs/"]),
        ("rm runs r", ["runs/"]),
        ("runs r", ["runs/"]),
        ("status r", ["runs/"]),
        ("cancel r", ["runs/"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("hydra/launcher=bas", ["hydra/launcher=basic"]),
        ("hydra.job.na", ["hydra.job.name="]),
    ],
)
def test_what_may_follow_is_offered(line: str, words: list[str]) -> None:
    found = offered(line)
    assert [word for word in found if word in words] == words or set(words) == set(found)
    assert bool(found) == bool(words)
    assert "experiment/leaderboard=" not in found


def test_an_empty_line_offers_the_verbs_before_all_else() -> None:
    assert offered("")[: len(VERBS)] == list(VERBS)


def test_a_project_of_ones_own_is_completed_too(tmp_path: Path) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "my_net.yaml").touch()
    assert offered("--config-dir conf model=my") == ["model=my_net"]
    assert offered("check-model --config-dir conf model=my") == ["model=my_net"]


def program(folder: Path) -> dict[str, str]:
    """Make a command `flair2-exp` in a folder; return the environment that finds it."""
    file = folder / "bin" / "flair2-exp"
    file.parent.mkdir()
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -m flair2_exp "$@"\n', encoding="utf-8")
    file.chmod(0o755)
    paths = {"PATH": f"{file.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths}


BASH = """
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
press() {  # what bash does at TAB: it splits words at = and hands over the last piece
    COMP_LINE="$1" COMP_POINT=${#1} COMPREPLY=()
    local last="$1"
    last="${last//\\\\\\\\ /__}" last="${last##*[ =:]}"
    last="${1: -${#last}}"
    compopt() { :; }
    _flair2_exp flair2-exp "$last" ""
    printf '%s\\n' "${COMPREPLY[@]}"
}
"""


def test_bash_gets_what_follows_its_word_break(tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    lines = [
        "flair2-exp -m sweep=fa", "flair2-exp --cf", "flair2-exp checkpoint=runs/l",
        "flair2-exp dataset.root=my\\ d", "flair2-exp show my\\ d",
    ]  # fmt: skip
    presses = "\n".join(f"press '{line}'" for line in lines)
    done = subprocess.run(
        ["bash", "-c", script("bash") + BASH.replace("\\\\", "\\") + presses],
        cwd=tmp_path, env=program(tmp_path), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    words = ["factors", "--cfg", "runs/last.ckpt", "my\\ data/", "my\\ data/"]
    assert done.stdout.splitlines() == words, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_reads_its_function(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    done = subprocess.run(
        [shell, "-n"], input=script(shell), capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_that_cannot_be_completed_prints_nothing_and_no_torch_is_loaded(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\nfrom flair2_exp.cli.completion import answer\n"
        "for line in ('flair2-exp model=nonsense hydra.jo', 'flair2-exp predict --nonsense x ',\n"
        "             'flair2-exp \\'', 'flair2-exp a=b ', 'flair2-exp export x --format '):\n"
        "    answer(line)\n"
        "print(sorted({'torch', 'lightning', 'mlflow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")
    assert done.stderr == ""
