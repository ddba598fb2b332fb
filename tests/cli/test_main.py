"""The command line as users type it, without an experiment behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MISTAKES = [
    ("modell=utt", "modell: no such option; did you mean model?"),
    ("model=utx", "model=utx: no such option; did you mean"),
    ("model.encodr=x", "model.encodr: no such option of model; did you mean encoder"),
    ("utea.heads=3", "utea.heads: no such option; did you mean utae"),
    ("experiment=leaderboard/unett", "did you mean leaderboard/unet"),
    ("hydra.foo=1", "hydra.foo: no such option"),
    ("loss.class_weights.water=1", "write +loss.class_weights.water=VALUE"),
    ("seed=abc", "seed=abc: expected a whole number."),
    ("train=maybe", "train=maybe: "),
    ("model=null", "a config group takes the name of one of its files"),
    ("model=[", "model=[: Hydra's grammar does not read this: no viable alternative"),
    ("dataset.root=/data/é", """Hydra: 'dataset.root="/data/é"'."""),
    ("dataset.root=a=b", """Hydra: 'dataset.root="a=b"'."""),
    ("dataset.root=~/data", """Hydra: 'dataset.root="~/data"'."""),
    ("dataset.root=${HOME}", "an environment variable is ${oc.env:HOME}"),
    ("model", "model: expected KEY=VALUE"),
    ("+model.encodr=x", "model.encodr: no such option; did you mean encoder"),
    ("+water=1", "water: no such option"),
    ("loss.class_weights={water:1}", "write +loss.class_weights.NAME=VALUE"),
    ("data.bands=red", "data.bands=red: expected a list, as [a,b]."),
    ("name=null", "name=null: expected a value, not null."),
    ("name=../../elsewhere", "name='../../elsewhere': expected the name of a folder"),
    ("~model", "model.name has no value"),
    ("+sweep=leaderboard", "give sweep=NAME once"),
    ("paths.root=", "paths.root is empty"),
    ("paths.root='~/x'", "paths.root=~/x: ~ is not expanded here; write /"),
    ("hydra.run.dir='~/x'", "~/x: ~ is not expanded here; write /"),
    ("hydra.launcher=joblib", "chosen with a slash: hydra/launcher=joblib"),
    ("sweep.dry_run=true", "this is a single run; add sweep=NAME, or --multirun."),
    ("tune.n_trials=3", "this is a single run; add tune=NAME."),
    ("sweep=leaderboard,factors", "one sweep at a time"),
    ("experiment=leaderboard/utt.yaml", "experiment=leaderboard/utt"),
    ("s2_preproc.size=30", "multiple of 8"),
    ("paths.root=/proc/nowhere", "cannot write to /proc/nowhere"),
    ("seed=1,2", "seed=1,2: several values are several jobs: add --multirun"),
    ("hydra/launcher=basik", "hydra/launcher=basik: no such option; did you mean basic"),
    ("hydra/sweeper/sampler=tpe", "a search has it: add tune=NAME"),
]


def command(*arguments: str, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m flair2_exp` in a folder."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "flair2_exp", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[each for each, _ in MISTAKES])
def test_a_mistake_is_told_in_two_lines_and_leaves_nothing_behind(
    override: str, message: str, tmp_path: Path
) -> None:
    done = command(override, folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        "--foo", "--cfg foo", "--cfg", "--multirun --cfg job", "--cfg job --info all", "--resolve",
        "--package data", "-sc x", "-sc install=cmd", "sweep=leaderboard --run",
        "--config-dir missing", "--experimental-rerun missing",
    ],
)  # fmt: skip
def test_a_misused_flag_is_told_in_one_line(arguments: str, tmp_path: Path) -> None:
    done = command(*arguments.split(), folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("flair2-exp: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["sweep=factors", "--cfg", "job", "--package", "sweep.name"], "factors"),
        (["--cfg", "job", "--package", "tune.name", "tune=unet"], "unet"),
        (["tune=unet", "--cfg", "all", "-p", "hydra.sweeper", "--resolve"], "study_name: unet"),
        (["model=unet", "--cfg", "job", "seed=5", "-p", "seed"], "5"),
        (["sweep=factors", "--info", "searchpath"], "pkg://hydra.conf"),
    ],
)
def test_what_a_sweep_and_a_search_start_from_is_shown(
    arguments: list[str], shown: str, tmp_path: Path
) -> None:
    done = command(*arguments, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_search_has_no_dry_run_and_starts_none(tmp_path: Path) -> None:
    done = command("tune=unet", "sweep.dry_run=true", folder=tmp_path)
    assert done.returncode == 1
    assert "sweep.dry_run: a search finds its trials as it goes" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sweep=leaderboard", "hydra/sweeper=basic"], "sweep=leaderboard is for hydra/sweeper="),
        (["--multirun", "sweep.dry_run=true", "hydra/sweeper=basic"], "sweep.dry_run=true is for"),
        (["tune=unet", "hydra/sweeper=ablation"], "tune=unet is for hydra/sweeper=optuna_study"),
        (["sweep=leaderboard", "dataset=flair2", "dataset.root=/nowhere"], "is no folder"),
        (["tune=unet", "dataset=flair2", "dataset.root=/nowhere"], "is no folder"),
    ],
)
def test_many_runs_that_could_not_be_made_are_not_begun(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    done = command(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_later_job_stops_the_sweep_before_the_first(tmp_path: Path) -> None:
    done = command("--multirun", "model=unet,utae,utt", "data=aerial_only", folder=tmp_path)
    assert done.returncode == 1
    assert "model=utae needs the satellite series" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_sampler_is_told_with_those_there_are(tmp_path: Path) -> None:
    done = command("tune=unet", "hydra/sweeper/sampler=foo", folder=tmp_path)
    assert done.returncode == 1
    assert "foo: no such option; there are cmaes, gp, grid, nsgaii, random, tpe." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_had_enough_costs_no_traceback(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "flair2_exp", "sweep=factors", "sweep.dry_run=true"]
    done = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.close()  # as `head` does
    assert done.stderr.read() == ""
    assert done.wait(timeout=120) == 141


def test_help_lists_every_group_with_its_options(tmp_path: Path) -> None:
    done = command("--help", folder=tmp_path)
    assert done.returncode == 0
    for words in ("s2_preproc", "monthly_cloudfree", "leaderboard/utt", "--multirun"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sweep=fa", ["sweep=factors"]),
        ("seed=1 experiment=leaderboard/unet", ["experiment=leaderboard/unet", "metadata_aug"]),
        ("experiment=", ["experiment=leaderboard/utt", "experiment=leaderboard/unet"]),
        ("tune=utt hydra/sweeper/sampler=t", ["hydra/sweeper/sampler=tpe"]),
    ],
)
def test_the_tab_key_offers_what_there_is(line: str, words: list[str], tmp_path: Path) -> None:
    asked = {**os.environ, "COMP_LINE": f"flair2-exp {line}"}
    done = command("-sc", "query=bash", folder=tmp_path, env=asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in words), done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["modell=utt"]])
def test_nothing_heavy_is_imported_before_an_experiment(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['flair2-exp', *{arguments!r}]\n"
        "from flair2_exp.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'mlflow', 'numpy', 'rasterio', 'optuna', 'pandas'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("heavy: []"), done.stdout[-300:] + done.stderr
