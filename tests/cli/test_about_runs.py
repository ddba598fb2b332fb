"""`runs`, `show` and `compare`: what they print about runs, and what a program reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flair2_exp.lifecycle.record import FAILED
from flair2_exp.tracking.tags import Tag
from tests.commands import answer
from tests.lifecycle.helpers import record_of
from tests.lifecycle.made import config_below, finished_folder
from tests.report.made_runs import make_folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user stands, with two runs of which one failed."""
    monkeypatch.setenv("FLAIR2_EXP_ROOT", str(tmp_path))
    for name, status in (("good", "FINISHED"), ("bad", FAILED)):
        config = config_below(tmp_path, f"name={name}", "optimizer.lr=0.5", "model=unet")
        finished_folder(tmp_path / "outputs" / name / "time", config, status=status)
    return tmp_path


def test_runs_are_a_table_for_people_and_json_for_programs(root: Path) -> None:
    shown = answer("runs")
    assert shown.status == 0
    head, *lines, total = shown.out.splitlines()
    assert head.split()[:3] == ["name", "seed", "status"]
    assert [line.split()[:3] for line in lines] == [["good", "1", "done"], ["bad", "1", "failed"]]
    assert total == "2 runs, model unet, dataset sample"
    values = json.loads(answer("runs", "--json", "--where", "status=failed").out)
    assert [each["name"] for each in values] == ["bad"]
    assert values[0]["test/miou"] is None
    own = answer("runs", "--columns", "name,optimizer.lr,test/iou/water", "--sort", "name").out
    assert [line.split() for line in own.splitlines()[1:3]] == [
        ["bad", "0.5", "–"],
        ["good", "0.5", "0.2000"],
    ]


def test_a_misspelt_question_is_explained(root: Path) -> None:
    for words, message in (
        (("--where", "model"), "expected NAME=VALUE"),
        (("--columns", "modle"), "did you mean model"),
        (("--sort", "statsu"), "did you mean status"),
        (("nowhere",), "no sweep of this name"),
    ):
        shown = answer("runs", *words)
        assert shown.status != 0
        assert message in shown.err


def test_no_runs_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAIR2_EXP_ROOT", str(tmp_path))
    assert answer("runs").out == "No runs.\n"
    assert answer("runs", "--json").out == "[]\n"
    assert not any(tmp_path.iterdir())


def test_a_run_is_shown_with_what_is_not_the_default(root: Path) -> None:
    folder = root / "outputs" / "bad"
    record = record_of(folder / "time")
    record.error, record.tags[Tag.COMMIT] = "ValueError: no", "abc"
    record.write(finished_folder(folder / "time", config_below(root), status=FAILED))
    shown = answer("show", str(folder))
    assert shown.status == 0
    for text in ("status    failed", "ValueError: no", "commit    abc", "trainer.max_epochs",
                 f"flair2-exp resume={folder / 'time'}", "config.yaml"):  # fmt: skip
        assert text in shown.out
    values = json.loads(answer("show", str(folder), "--json").out)
    assert values["options"]["trainer.max_epochs"] == {"value": 1, "default": 100}
    assert "optimizer.momentum" not in values["options"]
    assert not [name for name in values["options"] if name.startswith("paths.")]
    assert "config.yaml" in values["files"]


def test_options_that_a_run_does_not_read_are_not_shown(root: Path) -> None:
    shown = {}
    for model in ("unet", "utae"):
        overrides = (f"model={model}", "trainer.num_nodes=2", "utae.checkpointing=true")
        config = config_below(root, *overrides)
        finished_folder(root / model, config, status=FAILED)
        shown[model] = json.loads(answer("show", str(root / model), "--json").out)["options"]
        assert {"trainer.num_nodes", "trainer.max_epochs", "data.batch_size"} <= {*shown[model]}
    assert not [name for name in shown["unet"] if name.startswith(("utae.", "fusion."))]
    assert "utae.checkpointing" in shown["utae"]


def test_two_runs_are_compared_by_class(tmp_path: Path) -> None:
    one, other = (make_folder(tmp_path, "unet", seed) for seed in (1, 2))
    shown = answer("compare", str(one), str(other), "--out", str(tmp_path / "figures"))
    assert shown.status == 0
    assert "coniferous" in shown.out
    assert "Intervals are over 4 test domains" in shown.out
    assert "val/miou" in shown.out
    assert (tmp_path / "figures" / "curves.png").is_file()
    values = json.loads(answer("compare", str(one), str(other), "--json").out)
    miou = values["scores"]["mIoU"]
    assert miou["difference"]["low"] < miou["difference"]["value"] < miou["difference"]["high"]
    assert values["options"] == {"seed": [1, 2]}
    assert answer("compare", str(one)).status == 2


def test_verbs_about_runs_import_nothing_heavy(root: Path) -> None:
    good = str(root / "outputs" / "good")
    code = """
import sys
from flair2_exp.cli.main import main
for words in (["runs"], ["status"], ["show", sys.argv[1]], ["rm", "nothing"]):
    try: main(words)
    except SystemExit: pass
print({"torch", "lightning", "mlflow", "pandas"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code, good], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr
