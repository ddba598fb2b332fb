from __future__ import annotations

from pathlib import Path

import pytest

from flair2_exp.cli.main import main
from flair2_exp.cli.words import parse
from flair2_exp.config.groups import config_folder
from flair2_exp.errors import ConfigError, UsageError
from tests.commands import answer


@pytest.mark.parametrize(
    ("typed", "flags", "overrides"),
    [
        ("seed=1", {}, "seed=1"),
        ("seed=1 -m model=unet,utt", {"multirun": True}, "seed=1 model=unet,utt"),
        ("seed=1 hydra.mode=MULTIRUN", {"multirun": True}, "seed=1 hydra.mode=MULTIRUN"),
        ("sweep=factors seed=1", {"multirun": True}, "sweep=factors seed=1"),
        ("--multi sweep=factors", {"multirun": True}, "sweep=factors"),
        ("sweep=factors -c job", {"cfg": "job"}, "sweep=factors"),
        ("--info=config sweep=factors", {"info": "config"}, "sweep=factors"),
        ("tune=utt", {"multirun": True}, "hydra/sweeper=optuna_study tune=utt"),
        ("tune=utt hydra/sweeper=own", {"multirun": True}, "tune=utt hydra/sweeper=own"),
        ("tune=utt -c hydra -p x", {"cfg": "hydra", "package": "x"},
         "hydra/sweeper=optuna_study tune=utt"),
        ("-sc install=bash", {"shell_completion": True}, "install=bash"),
    ],
)  # fmt: skip
def test_flags_stand_anywhere_and_a_sweep_implies_its_own(
    typed: str, flags: dict[str, object], overrides: str
) -> None:
    words = vars(parse(typed.split()))
    assert words.pop("overrides") == overrides.split()
    assert {name: value for name, value in words.items() if value} == flags


def test_an_experiment_is_run_from_its_file(tmp_path: Path) -> None:
    files = [tmp_path / "experiment" / name for name in ("best.yaml", "mine/own.yaml")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    flags = parse(["--multirun", f"experiment={files[0]},{files[1]}", "seed=1"])
    assert flags.overrides == ["experiment=best,mine/own", "seed=1"]
    assert (flags.multirun, flags.config_dir) == (True, str(tmp_path))


@pytest.mark.parametrize("name", ["plain", "a b", "it's", 'a"b'])
def test_an_experiment_file_is_found_beside_a_folder_of_own_configs(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / name / "experiment" / "best.yaml"
    own = tmp_path / "own" / "model" / "mine.yaml"
    for path in (file, own):
        path.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ndefaults:\n  - override /model: mine\nseed: 7\n")
    own.write_text("name: mine\n_target_: own.Net\nreads: [aerial]\n")
    shown = answer(
        "--config-dir", str(tmp_path / "own"), f"experiment={file}", "--cfg", "job"
    )  # fmt: skip
    assert shown.status == 0, shown.err
    assert "_target_: own.Net" in shown.out
    assert "seed: 7" in shown.out


@pytest.mark.parametrize("name", ["a b", "é", "it's", 'a"b', "a=b", "100%"])
def test_an_experiment_file_may_lie_in_a_folder_of_any_name(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / name / "experiment" / "best.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ns2_preproc: {size: 30}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        main([f"experiment={name}/experiment/best.yaml"])
    assert "s2_preproc.size=30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing/experiment/best.yaml", "there is no such file"),
        ("best.yaml", "only in a folder called experiment"),
    ],
)
def test_an_experiment_file_that_hydra_cannot_find_is_refused(
    file: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("best.yaml").touch()
    with pytest.raises(ConfigError, match=message):
        parse([f"experiment={file}"])


def test_experiments_of_conf_may_be_named_by_their_files() -> None:
    file = config_folder() / "experiment" / "leaderboard" / "utt.yaml"
    assert parse([f"experiment={file}"]).overrides == ["experiment=leaderboard/utt"]


@pytest.mark.parametrize("typed", ["tune=utt sweep=factors", "tune=utt,unet"])
def test_one_command_is_one_sweep_or_one_search(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"one after the other|one search at a time"):
        parse(typed.split())


def test_a_flag_that_hydra_lacks_is_a_misuse() -> None:
    with pytest.raises(UsageError, match="unrecognized arguments: --nonsense"):
        parse(["--nonsense", "seed=1"])
