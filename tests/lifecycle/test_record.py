"""A run's record: written and read, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flair2_exp.errors import ConfigError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import FORMAT, KILLED, RunRecord
from tests.configs import SMALL_SAMPLE, compose_config, run

DEBUG = ("preset=debug", "tracking=off", "trainer=cpu", *SMALL_SAMPLE)


def make_record(path: Path, *overrides: str, fingerprint: str = "0" * 64) -> RunRecord:
    """Leave the record of a killed run in a folder."""
    folder = RunFolder(path)
    record = RunRecord.of(compose_config(*DEBUG, *overrides), fingerprint, folder)
    record.status, record.training = KILLED, {"train/epochs": 2.0}
    record.write(folder)
    return record


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = make_record(tmp_path, "seed=7", "model=unet")
    assert RunRecord.read(RunFolder(tmp_path)) == record
    assert (record.seed, record.row, record.fingerprint) == (7, "unet", "0" * 64)
    assert len(record.identity) == 16
    assert RunRecord.read(RunFolder(tmp_path / "none")) is None


@pytest.mark.parametrize("form", [None, 1, FORMAT + 1])
def test_a_record_of_another_format_is_refused_with_the_number(
    form: int | None, tmp_path: Path
) -> None:
    make_record(tmp_path)
    file = RunFolder(tmp_path).record
    content = json.loads(file.read_text())
    del content["format"]
    file.write_text(json.dumps(content if form is None else {"format": form, **content}))
    for read in (lambda: RunRecord.read(RunFolder(tmp_path)), lambda: run(tmp_path, tmp_path)):
        with pytest.raises(ConfigError) as refusal:
            read()
        assert f"run.json has format {form or 1}, this version reads {FORMAT}" in str(refusal.value)
        assert "sweep.name=NAME" in str(refusal.value)
        assert len(str(refusal.value).splitlines()) <= 2


def test_of_another_experiment_what_was_changed_is_named_before_what_follows(
    tmp_path: Path,
) -> None:
    record = make_record(tmp_path, "model=unet")
    tested = compose_config(*DEBUG, "model=unet", "train=false", "model.weights=a.pt")
    with pytest.raises(ConfigError, match=r"another experiment: train: true -> false; "):
        record.require_same(tested, "", RunFolder(tmp_path))


def test_a_run_checks_itself_that_its_folder_holds_a_run_of_these_data(
    root: Path, tmp_path: Path
) -> None:
    """A sweep cannot tell where the files are on other machines' disks; the job can."""
    folder = RunFolder(tmp_path / "run")
    make_record(folder.path, f"paths.root={root}")
    before = folder.record.read_text()
    with pytest.raises(ConfigError, match=r"other data: sample in .* \(fingerprint 000000000000\)"):
        run(root, folder.path)
    assert folder.record.read_text() == before
    assert not folder.history.exists()
    assert not folder.has_checkpoints()
