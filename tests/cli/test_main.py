"""The command line as users type it, without an experiment behind it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.singleton import Singleton
from hydra.errors import MissingConfigException

from flair2_exp import __version__
from flair2_exp.config.explain import explain
from flair2_exp.sweeps import ablation
from tests.commands import answer
from tests.devices import ROOT

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
    ("~model", "a group cannot be removed"),
    ("+sweep=leaderboard", "leave out the +: sweep=leaderboard"),
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
    ("+tracking.tags={mlflow.runName:x}", "names that begin with mlflow. are taken"),
    ("hydra.job.name=a/b", "hydra.job.name=a/b: expected a plain name"),
    ("hydra.output_subdir=/etc", "hydra.output_subdir=/etc: expected a plain name"),
    ("hydra/launcher=basik", "hydra/launcher=basik: no such option; did you mean basic"),
    ("hydra/sweeper/sampler=tpe", "a search has it: add tune=NAME"),
    (f"name={'x' * 256}", "a name of 256 bytes, where file systems take 255."),
    (f"name='{'é' * 200}'", "a name of 400 bytes, where file systems take 255."),
    (f"name={'x/' * 2000}y", "a path of 4001 bytes, where at most 3800 can be used."),
    (f"paths.root={'x' * 256}", "paths.root=xxx"),
    (f"paths.output={'x' * 256}", "paths.output=xxx"),
    (f"hydra.run.dir={'x' * 256}", "a name of 256 bytes"),
    (f"checkpoint={'x' * 256}", "a name of 256 bytes"),
    (f"dataset=flair2 dataset.root={'x' * 256}", "a name of 256 bytes"),
    (f"tracking.experiment={'x' * 256}", "tracking.experiment=xxx"),
    (f"tracking.uri=sqlite:////{'x' * 256}", "tracking.uri=/xxx"),
    (f"experiment={'x' * 256}.yaml", "a longer name than the file system takes"),
    (f"--config-name {'x' * 256}", "a longer name than the file system takes"),
    (f"--multirun sweep.name={'x' * 256}", "sweep.name=xxx"),
    (f"--multirun name={'x' * 250}", "hydra.sweep.subdir=/"),
    (f"--multirun hydra.sweep.dir={'x' * 256}", "a name of 256 bytes"),
    (f"--multirun hydra.sweep.subdir={'x' * 256}", "a name of 256 bytes"),
    (f"tune=unet tune.name={'x' * 256}", "tune.name=xxx"),
    ("name='a\x1bb'", r"name='a\x1bb': a line break or another control character."),
    ("paths.root='a\x07b'", r"paths.root='a\x07b': the name holds a line break or another control"),
    ("--multirun hydra.sweep.subdir='a\x07b'", r"a\x07b': the name holds a line break or another"),
    ("checkpoint=/dev/zero", "checkpoint=/dev/zero: this is not a file or a folder."),
    ("model.weights=/dev/null", "model.weights=/dev/null: this is not a file or a folder."),
    ("model.encoder_weights=/dev/zero", "model.encoder_weights=/dev/zero: this is not a file"),
    ("split=file split.file=/dev/zero", "split.file=/dev/zero: this is not a file or a folder."),
    ("dataset.store=/dev/null", "dataset.store=/dev/null: this is not a file or a folder."),
    ("dataset=flair2 dataset.root=/dev/null", "dataset.root=/dev/null: this is not a file"),
    ("tracking.uri=sqlite:////dev/null", "tracking.uri=/dev/null: this is not a file"),
    ("tune=unet tune.storage=/dev/null", "storage /dev/null is a device or a pipe"),
    ("tune=unet tune.storage=sqlite:////dev/null", "storage sqlite:////dev/null is a device"),
    ("tune=unet hydra.sweeper.n_jobs=100000", "n_jobs=100000: expected at least 1 and at most"),
    ("tune=unet hydra.sweeper.poll=inf", "poll=inf: expected more than 0 seconds and at most 600"),
    ("--multirun hydra/launcher=joblib hydra.launcher.n_jobs=100000", "n_jobs=100000: expected 1"),
    ("--multirun seed=range(1,100000000000)", "more than 10000 jobs in one sweep."),
    ("--multirun hydra/launcher/site=generic", "is for hydra/launcher=slurm: add that."),
    ("seed.a=1", "seed.a: no such option; write seed=VALUE."),
    ("--multirun sweep.factors.a=1", "sweep.factors.a: no such option; write sweep.factors=VALUE."),
    ("dataset=flair2 +dataset.sample.seed=1", "those of dataset=sample alone; omit them."),
    ("utae=3", "utae=3: expected its options one by one"),
    ("+experiment=leaderboard/unet", "leave out the +: experiment=leaderboard/unet"),
    ("~seed", "an option cannot be removed: omit it, or set seed=VALUE."),
    ("~trainer=cpu", "a group cannot be removed"),
    ("data.bands=[red, green] seed=1", "without blanks: data.bands=[red,green]"),
    ("optimizer.betas=[0.9,0.99]", "written +optimizer.options={betas:VALUE}"),
    ("hydra.searchpath=[nowhere]", "hydra.searchpath: there is no folder nowhere."),
    ("--multirun hydra.launcher._target_=x", "chosen from the group: hydra/launcher=NAME"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[each[:50] for each, _ in MISTAKES])
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
        "-sc query=bash", "--foo", "--cfg foo", "--cfg", "--cfg job --info all", "--resolve",
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
        ("--multirun --cfg job seed=3 -p seed", "3"),
        ("run --cfg job seed=6 -p seed", "6"),
        ("--hydra-help seed=1 model=nonsense", "Hydra ("),
        ("--version seed=1", f"flair2-exp {__version__}"),
        ("-sc install=bash", "complete -F _flair2_exp flair2-exp"),
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


def test_a_config_of_many_jobs_is_said_to_be_the_first_ones() -> None:
    done = answer("--multirun", "--cfg", "job", "seed=3,4", "model=unet,utt", "-p", "seed")
    assert done.err == "flair2-exp: this is the first job, seed=3 model=unet\n"
    assert done.out.splitlines()[-1] == "3"


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


def test_help_lists_every_group_and_of_those_that_are_named_the_choices() -> None:
    done = answer("--help")
    assert done.status == 0
    assert answer("help").out == done.out
    for words in ("s2_preproc", "experiment", "--multirun"):
        assert words in done.out
    named = answer("experiment", "s2_preproc", "--help").out
    assert "monthly_cloudfree" in named
    assert "leaderboard/utt" in named
    assert "deeplabv3plus" not in named


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


INTERRUPTED = """
import builtins, os, signal, sys, traceback
import omegaconf
real = builtins.__import__
def importing(name, *rest):
    if name == {within!r}:
        builtins.__import__ = real
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest)
def composing(*arguments):
    names = {{frame.name for frame in traceback.extract_stack()}}
    if arguments[1] == 1 and "compose_config" in names:
        ListConfig._set_item_impl = set_item
        os.kill(os.getpid(), signal.SIGINT)
    return set_item(*arguments)
from omegaconf import ListConfig
from flair2_exp.cli.main import main
if {within!r} == "omegaconf":
    set_item = ListConfig._set_item_impl
    ListConfig._set_item_impl = composing
else:
    builtins.__import__ = importing
main(sys.argv[1:])
"""
"""Sends itself Ctrl-C where it does harm: torch's import of NumPy forgets it, and omegaconf makes
an AttributeError of it, in a list whose second item is not there yet."""


@pytest.mark.parametrize(
    ("within", "words"),
    [
        ("numpy._core._multiarray_umath", ["check-model", "model=unet"]),
        ("omegaconf", ["preset=debug"]),
    ],
)
def test_ctrl_c_at_the_start_costs_one_line_and_leaves_nothing(
    within: str, words: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(within=within), *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "flair2-exp: interrupted")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_not_there_are_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom flair2_exp.cli.main import main\n"
        f"words = ['dataset=flair2', 'dataset.root={tmp_path}/none']\n"
        "try:\n    main(words)\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "False\n"), done.stderr
    assert f"dataset.root={tmp_path}/none is not a folder" in done.stderr
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


@pytest.mark.parametrize(
    "line",
    [
        "checkpoint=FIFO", "model.weights=FIFO", "split=file split.file=FIFO", "dataset.store=FIFO",
        "dataset=flair2 dataset.root=. dataset.centroids=FIFO", "tune=unet tune.storage=FIFO",
        "experiment=FIFO", "--config-dir FIFO", "--config-path FIFO", "tracking.uri=FIFO",
    ],
)  # fmt: skip
def test_a_fifo_is_not_waited_for(line: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "FIFO")
    done = answer(*line.split())
    assert done.status in (1, 2)
    assert len(done.err.strip().splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["FIFO"]


def test_names_with_blanks_at_their_ends_and_lines_are_shown_in_a_line() -> None:
    refused = answer("name='a '")
    assert "name='a ': blanks at its ends; write name='a'." in refused.err
    for line in (["--multirun"], []):
        refused = answer("name='a\nb'", *line)
        assert r"name='a\nb': a line break or another control character." in refused.err
        assert refused.err.count("\n") == 1


ADVICE = [
    ("s2_preproc.size=30", "use 24 or 32", "s2_preproc.size=32"),
    ("dataset.sample.patch_size=100", "patch_size=96 or 128", "dataset.sample.patch_size=96"),
    ("dataset.sample.super_patch=24", "use dataset.sample.super_patch=40",
     "dataset.sample.super_patch=40"),
    ("model=utt data=aerial_only", "use data=aerial_s2, or model=unet", "model=utt data=aerial_s2"),
    ("model=utt data=aerial_only", "use data=aerial_s2, or model=unet",
     "model=unet data=aerial_only"),
    ("metadata=on model=utae", "use metadata=off, or model=unet or utt",
     "metadata=on model=unet"),
    ("metadata=on model=utae", "use metadata=off, or model=unet or utt",
     "metadata=off model=utae"),
    ("scheduler=plateau scheduler.warmup_epochs=2", "use scheduler=none or cosine",
     "scheduler=cosine scheduler.warmup_epochs=2"),
    ("scheduler=plateau scheduler.warmup_epochs=2", "or scheduler.warmup_epochs=0",
     "scheduler=plateau scheduler.warmup_epochs=0"),
    ("callbacks.best.monitor=val/miou", "use callbacks.best.mode=max",
     "callbacks.best.monitor=val/miou callbacks.best.mode=max"),
    ("utae.heads=128 utae.aggregation=mean", "use at most 64",
     "utae.heads=64 utae.aggregation=mean"),
    ("train=false test=false", "drop one of them", "test=false"),
    ("train=false", "checkpoint=PATH", "train=false checkpoint=PATH"),
    ("train=false", "model.weights=PATH", "train=false model.weights=PATH"),
    ("objective=test/miou", "use a validation metric, as val/miou", "objective=val/miou"),
    ("objective=[]", "use objective=val/miou", "objective=val/miou"),
    ("tracking=server", "tracking.uri=http://HOST:PORT",
     "tracking=server tracking.uri=http://HOST:5000"),
    ("split=file", "split.file=PATH", "split=file split.file=PATH"),
    ("dataset=flair2", "dataset.root=/path/to/the", "dataset=flair2 dataset.root=/path"),
    ("trainer.devices=0", "a number from 1 up, or -1", "trainer.devices=-1"),
    ("name='a '", "write name='a'", "name='a'"),
    ("seed=1,2", "add --multirun", "--multirun seed=1,2"),
    ("data.bands=red,green,blue", "A list is written data.bands=[red,green,blue]",
     "data.bands=[red,green,blue]"),
    ("name=a,b", "a text with commas 'name=\"a,b\"'", 'name="a,b"'),
    ("dataset.root=a=b", "'dataset.root=\"a=b\"'", 'dataset.root="a=b"'),
    ("data.bands=red", "expected a list, as [a,b]", "data.bands=[red,green,blue]"),
    ("loss.class_weights={'bare soil':2}", "write +loss.class_weights={bare soil:2}",
     "+loss.class_weights={bare soil:2}"),
    ("loss.class_weights={water:1}", "write +loss.class_weights={NAME:VALUE}",
     "+loss.class_weights={water:1}"),
    ("loss.class_weights.water=1", "write +loss.class_weights={water:VALUE}",
     "+loss.class_weights={water:1}"),
    ("optimizer.options.momentum=0.9", "write +optimizer.options={momentum:VALUE}",
     "+optimizer.options={momentum:0.9}"),
    ("tracking.tags.a=b", "write +tracking.tags={a:VALUE}", "+tracking.tags={a:b}"),
    ("seed.a=1", "write seed=VALUE", "seed=1"),
    ("utae=3", "NODE.OPTION=VALUE", "utae.heads=4"),
    ("hydra.launcher=basic", "hydra/launcher=basic", "hydra/launcher=basic"),
    ("sweep.dry_run=true", "add sweep=NAME, or --multirun", "--multirun sweep.dry_run=true"),
    ("tune.n_trials=3", "add tune=NAME", "tune=unet tune.n_trials=3"),
    ("hydra/sweeper/sampler=tpe", "add tune=NAME", "tune=unet hydra/sweeper/sampler=tpe"),
    ("experiment=leaderboard/utt.yaml", "experiment=leaderboard/utt",
     "experiment=leaderboard/utt dataset.root=x"),
    ("dataset=flair2 dataset.root=x dataset.sample.patch_size=128", "omit them",
     "dataset=flair2 dataset.root=x"),
    ("model=utae ~model", "choose an option of its group", "model=utae"),
    ("model=null", "omit it instead", "model=unet"),
    ("+sweep=leaderboard", "leave out the +: sweep=", "sweep=leaderboard dataset.root=x"),
    ("dataset.root=${HOME}", "${oc.env:HOME}", "dataset.root=${oc.env:HOME}"),
    ("name=${oc.env:NO_X}", "${oc.env:NO_X,VALUE}", "name=${oc.env:NO_X,VALUE}"),
    ("name=${nores:HOME}", "${oc.env:NAME}", "name=${oc.env:HOME_X,x}"),
    ("+seed=3", "Either remove + prefix: 'seed=3'", "seed=3"),
    ("experiment=1", r"as experiment=\'1\'", "experiment='leaderboard/utt' dataset.root=x"),
    ("modell=utt", "did you mean model?", "model=utt"),
    ("model.encodr=x", "did you mean encoder", "model.encoder=x"),
    ("model.decoder_channels=[1]", "expected five widths", "model.decoder_channels=[8,8,8,8,8]"),
]  # fmt: skip
"""What is refused, the words that say what to type instead, and a command that follows them."""


@pytest.mark.parametrize(("refused", "advice", "followed"), ADVICE)
def test_who_follows_a_message_meets_it_no_more(
    refused: str, advice: str, followed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[object] = []
    for place in ("lifecycle.experiment.run", "optuna_sweeper.plugin.OptunaStudySweeper.sweep"):
        monkeypatch.setattr(f"flair2_exp.{place}", lambda *_, **__: reached.append(0))
    monkeypatch.setattr(
        ablation.AblationSweeper, "sweep", lambda *_, **__: reached.append(0), raising=True
    )

    def words(line: str) -> list[str]:  # a blank begins a word only where an option follows it
        return re.split(r" (?=[-+~\w./]+=|~)|(?<=--multirun) ", line)

    done = answer(*words(refused))
    assert done.status == 1
    assert advice in done.err
    assert not reached
    done = answer(*words(followed))
    assert (done.status, done.err) == (0, "")
    assert reached


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "parallel"), ("submitit_slurm", "slurm")]
)
def test_a_launcher_whose_package_is_absent_names_the_extra(launcher: str, extra: str) -> None:
    # Hydra's own words, of an environment without the plugin.
    absent = f"Could not find 'hydra/launcher/{launcher}'\n\nAvailable options:\n\tbasic\n\tray"
    told = explain(MissingConfigException(absent, missing_cfg_file=f"hydra/launcher/{launcher}"))
    assert told is not None
    assert told.endswith(f"pip install 'flair2-exp[{extra}]'")


def test_an_interpreter_without_what_is_needed_is_told_how_to_get_it(tmp_path: Path) -> None:
    package = Path(__file__).parents[2] / "flair2_exp"
    done = subprocess.run(
        [sys.executable, "-S", "-m", "flair2_exp", "--help"],  # -S: no installed packages
        cwd=tmp_path, env={"PYTHONPATH": str(package.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("flair2-exp: this Python (")
    assert "bin/activate`" in done.stderr
    assert done.stderr.count("\n") == 1


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
