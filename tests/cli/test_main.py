"""The command line as users type it, without an experiment behind it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.singleton import Singleton

from tests.commands import answer

HEAVY = ("torch", "lightning", "mlflow", "rasterio", "optuna", "pandas")

MISTAKES = [
    ("modell=utt", "modell: no such option; did you mean model?"),
    ("model=utx", "model=utx: no such option; did you mean"),
    ("model.encodr=x", "model.encodr: no such option of model; did you mean encoder"),
    ("utea.heads=3", "utea.heads: no such option; did you mean utae"),
    ("experiment=leaderboard/unett", "did you mean leaderboard/unet"),
    ("hydra.foo=1", "hydra.foo: no such option"),
    ("loss.class_weights.water=1", "write +loss.class_weights={water:VALUE}"),
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
    ("loss.class_weights={water:1}", "write +loss.class_weights={NAME:VALUE}"),
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
    ("sweep=leaderboard,factors", "sweep holds for a whole sweep: start a command for each value"),
    ("--multirun seed=1 sweep.name=a,b", "sweep.name holds for a whole sweep"),
    ("--multirun seed=1 paths.root=a,b", "paths.root holds for a whole sweep"),
    ("--multirun dataset.sample.seed=0,1 hydra.sweep.subdir='x/${seed}'", "would share the folder"),
    ("--multirun model=unet,utae,utt data=aerial_only", "model=utae needs the satellite series"),
    ("experiment=leaderboard/utt.yaml", "experiment=leaderboard/utt"),
    ("s2_preproc.size=30", "multiple of 8"),
    ("paths.root=/proc/nowhere", "cannot write to /proc/nowhere"),
    ("seed=1,2", "seed=1,2: several values are several jobs: add --multirun"),
    ("hydra/launcher=basik", "hydra/launcher=basik: no such option; did you mean basic"),
    ("hydra/sweeper/sampler=tpe", "a search has it: add tune=NAME"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[each for each, _ in MISTAKES])
def test_a_mistake_costs_two_lines_and_leaves_nothing_behind(
    line: str, message: str, tmp_path: Path
) -> None:
    done = answer(*line.split())
    assert done.status == 1
    assert message in done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) <= 2
    assert not done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "--foo", "--cfg foo", "--cfg", "--multirun --cfg job", "--cfg job --info all", "--resolve",
        "--package data", "-sc x", "-sc install=cmd", "sweep=leaderboard --run",
        "--config-dir missing", "--experimental-rerun missing",
    ],
)  # fmt: skip
def test_a_misused_flag_costs_one_line(line: str, tmp_path: Path) -> None:
    done = answer(*line.split())
    assert done.status == 2
    assert done.err.startswith("flair2-exp: ")
    assert len(done.err.splitlines()) == 1, done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("sweep=factors --cfg job --package sweep.name", "factors"),
        ("--cfg job --package tune.name tune=unet", "unet"),
        ("tune=unet --cfg all -p hydra.sweeper --resolve", "study_name: unet"),
        ("model=unet --cfg job seed=5 -p seed", "5"),
        ("sweep=factors --info searchpath", "pkg://hydra.conf"),
    ],
)
def test_what_a_sweep_and_a_search_start_from_is_shown(
    line: str, shown: str, tmp_path: Path
) -> None:
    done = answer(*line.split())
    assert (done.status, done.err) == (0, "")
    assert shown in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sweep=leaderboard hydra/sweeper=basic", "sweep=leaderboard is for hydra/sweeper="),
        ("--multirun sweep.dry_run=true hydra/sweeper=basic", "sweep.dry_run=true is for"),
        ("tune=unet hydra/sweeper=ablation", "tune=unet is for hydra/sweeper=optuna_study"),
        ("tune=unet hydra/sweeper/sampler=foo",
         "foo: no such option; there are cmaes, gp, grid, nsgaii, random, tpe."),
        ("tune=unet sweep.dry_run=true",
         "sweep.dry_run: a search finds its trials as it goes"),
        ("sweep=leaderboard dataset=flair2 dataset.root=/nowhere", "is not a folder"),
        ("tune=unet dataset=flair2 dataset.root=/nowhere", "is not a folder"),
    ],
)  # fmt: skip
def test_many_runs_that_could_not_be_made_are_not_begun(
    line: str, message: str, tmp_path: Path
) -> None:
    done = answer(*line.split())
    assert done.status == 1
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_had_enough_costs_no_traceback(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "flair2_exp", "sweep=s2_preproc", "sweep.dry_run=true"]
    done = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.close()  # as `head` does
    assert done.stderr.read() == ""
    assert done.wait(timeout=120) == 141


def test_help_lists_every_group_with_its_options() -> None:
    done = answer("--help")
    assert done.status == 0
    for words in ("s2_preproc", "monthly_cloudfree", "leaderboard/utt", "--multirun"):
        assert words in done.out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sweep=fa", ["sweep=factors"]),
        ("seed=1 experiment=leaderboard/unet", ["experiment=leaderboard/unet", "metadata_aug"]),
        ("experiment=", ["experiment=leaderboard/utt", "experiment=leaderboard/unet"]),
        ("tune=utt hydra/sweeper/sampler=t", ["hydra/sweeper/sampler=tpe"]),
    ],
)
def test_the_tab_key_offers_what_there_is(
    line: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", f"flair2-exp {line}")
    done = answer("-sc", "query=bash")
    assert (done.status, done.err) == (0, "")
    assert all(word in done.out for word in words), done.out


COMMANDS = [
    ["--help"],
    ["--cfg", "job"],
    ["modell=utt"],
    ["--multirun", "model=unet,utt", "seed=1,2,3", "sweep.dry_run=true"],
]


def test_nothing_heavy_is_imported_before_an_experiment(tmp_path: Path) -> None:
    """A dry run, the last one, may need NumPy for the data's fingerprint."""
    program = (
        "import sys\n"
        "from flair2_exp.cli.main import main\n"
        f"for arguments in {COMMANDS!r}:\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        f"    print('heavy:', sorted({set(HEAVY)!r} & set(sys.modules)))\n"
        "    if arguments[0] != '--multirun':\n"
        "        print('heavy:', sorted({'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    heavy = [line for line in done.stdout.splitlines() if line.startswith("heavy: ")]
    assert heavy == ["heavy: []"] * 7, done.stderr
    assert "6 jobs, 0 done; to go: unknown" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "written",
    [
        "loss.class_weights={'bare soil':2}",
        "loss.class_weights.water=2",
        "loss.class_weights={a:1}",
    ],
)
def test_the_way_that_a_message_offers_works(written: str) -> None:
    refused = answer(written)
    way = refused.err.rpartition("write ")[2].strip()
    assert way.startswith("+loss.class_weights={"), refused.err
    way = way.replace("NAME", "bare soil").replace("VALUE", "2")
    shown = answer(way, "--cfg", "job", "--package", "loss.class_weights")
    assert shown.status == 0, shown.err
    assert ": 2" in shown.out


def test_options_of_the_sample_beside_another_data_set_are_named() -> None:
    refused = answer("dataset=flair2", "dataset.root=x", "dataset.sample.patch_size=128")
    assert refused.status == 1
    assert refused.err.count("\n") == 1
    assert "those of dataset=sample alone" in refused.err


def test_a_terminal_that_lacks_characters_gets_them_escaped(tmp_path: Path) -> None:
    poor = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "MPLBACKEND": "module://nowhere"}
    done = subprocess.run(
        [sys.executable, "-m", "flair2_exp", "name='été'", "--cfg", "job", "--package", "name"],
        cwd=tmp_path, env={**os.environ, **poor}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith("\\xe9t\\xe9")


def test_a_sweep_runs_in_a_process_where_a_launcher_has_started_hydras_plugins_anew(
    tmp_path: Path,
) -> None:
    Singleton.set_state(Singleton.get_state())  # as joblib's launcher does for a job in a thread
    done = answer("--multirun", "seed=1,2", "sweep.dry_run=true", f"paths.root={tmp_path}")
    assert done.status == 0, done.err
