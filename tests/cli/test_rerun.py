"""`rerun`: the same run again, in a new folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import read_metrics
from flair2_exp.tracking.tags import Tag
from flair2_exp.training.callbacks import ResumePoint
from tests.commands import answer
from tests.configs import run
from tests.lifecycle.helpers import record_of, scores


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that has trained and been tested."""
    root = tmp_path_factory.mktemp("rerun")
    folder = RunFolder(root / "outputs" / "first")
    run(root, folder.path, "model=unet", "data=aerial_only", "callbacks.panel.patches=0")
    return folder


def test_the_same_run_again_has_the_same_scores(first: RunFolder) -> None:
    done = answer("rerun", str(first))
    assert done.status == 0, done
    assert "Nothing has changed since" in done.out
    (again,) = (first.path.parent / "unet").iterdir()
    assert scores(read_metrics(RunFolder(again))) == scores(read_metrics(first))
    assert record_of(again).identity == record_of(first.path).identity
    assert done.out.count("most frequent class") == 1
    assert RunFolder(again).log.read_text("utf-8").count("most frequent class") == 1
    assert (RunFolder(again).hydra / "hydra.yaml").is_file()


def test_what_has_changed_since_is_listed_and_nothing_runs(
    first: RunFolder, tmp_path: Path
) -> None:
    record = record_of(first.path)
    record.tags |= {str(Tag.COMMIT): "older", str(Tag.PACKAGES): "python==3.0; torch==1.0"}
    record.deciding |= {"fingerprint": "of other data", "version": "0.0.1"}
    copy = RunFolder(tmp_path / "copy")
    record.write(copy)
    copy.config.write_text(first.config.read_text("utf-8"), "utf-8")
    copy.metrics.write_text(json.dumps({"test/miou": 0.5}))
    before = sorted(first.path.parent.iterdir())
    shown = answer("rerun", str(copy), "--dry-run")
    assert shown.status == 0, shown
    lines = {line.split()[0]: line for line in shown.out.splitlines() if line}
    assert "older" in lines["commit"]
    assert "1.0" in lines["torch"]
    assert "of other data" in lines["data"]
    assert "0.0.1" in lines["version"]
    assert "would run in" in shown.out
    assert sorted(first.path.parent.iterdir()) == before


def test_the_score_of_an_ensemble_and_a_folder_in_use_are_refused(
    first: RunFolder, tmp_path: Path
) -> None:
    record = record_of(first.path)
    record.tags[str(Tag.MEMBERS)] = "a; b"
    copy = RunFolder(tmp_path / "ensemble")
    record.write(copy)
    refused = answer("rerun", str(copy))
    assert "score of an ensemble" in refused.err
    assert len(refused.err.splitlines()) == 2
    taken = answer("rerun", str(first), "--out", str(first))
    assert taken.status == 1
    assert "holds a run already" in taken.err


def test_an_interrupted_one_says_what_resumes_it(
    first: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def struck(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResumePoint, "on_train_epoch_end", struck)
        ended = answer("rerun", str(first), "--out", str(tmp_path / "again"))
    assert ended.status == 130
    command = f"resume={tmp_path / 'again'}"
    last = ended.err.strip().splitlines()[-1]
    assert last == f"flair2-exp: interrupted; this resumes: flair2-exp {command}"
    done = answer(command)
    assert done.status == 0, done.err
    assert scores(read_metrics(RunFolder(tmp_path / "again"))) == scores(read_metrics(first))
