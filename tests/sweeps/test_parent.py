"""A sweep's own MLflow run: one for each sweep, whatever ended its process, and what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.config import identity
from flair2_exp.config.experiment import Config
from flair2_exp.config.tracking import TrackingConfig
from flair2_exp.lifecycle.folder import SWEEP_FILE
from flair2_exp.sweeps import ablation, parent
from flair2_exp.sweeps.ablation import SweepFailedError
from flair2_exp.sweeps.parent import Notes, description, open_parent, parent_of
from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.run import Run
from flair2_exp.tracking.store import Store, open_store
from flair2_exp.tracking.tags import Tag
from tests.configs import compose_config
from tests.lifecycle.made import config_below, finished_folder
from tests.sweeps.made import MadeSweep, config_of
from tests.sweeps.test_failures import done_and_refused


class Listening(Run):
    """Remembers what a parent was given."""

    def __init__(self) -> None:
        super().__init__()
        self.page, self.metrics, self.tables = "", dict[str, float](), list[str]()

    def describe(self, markdown: str) -> None:
        self.page = markdown

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.metrics |= metrics

    def log_text(self, text: str, path: str) -> None:
        if path == ablation.JOBS_FILE:
            self.tables.append(text)


def test_the_parents_page_has_the_findings_and_its_table_the_identities(
    made: MadeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Listening()
    monkeypatch.setattr(ablation, "open_parent", lambda *_, **__: run)
    with pytest.raises(SweepFailedError):
        made.run(done_and_refused)
    assert "utt, seed 1: failed (the data are gone)" in run.page
    assert run.metrics["jobs/not_done"] == 1
    assert 0 < run.metrics["best/miou"] < 1
    early, late = run.tables
    assert " experiment " in early
    assert identity.identity(config_of(2, made.root), "data") in late


def test_a_description_has_links_to_as_many_rows_as_mlflow_takes(tmp_path: Path) -> None:
    Notes(name="many").write(tmp_path)
    config = config_below(tmp_path)
    for number in range(120):
        named = dataclasses.replace(config, name=f"a row | {number}")
        finished_folder(tmp_path / str(number), named, run_id=f"{number:032}")
    text = description(tmp_path, "7")
    assert len(text) < 8000
    assert "[All 120 runs, by score](#/experiments/7/runs?" in text
    shown = [line for line in text.splitlines() if "/runs/" in line]
    assert f"| {120 - len(shown)} more rows |" in text
    assert shown[0].startswith(r"| a row \| 0 | 1: [0.3000](#/experiments/7/runs/0000")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def opened(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Opens the parent of a sweep in a folder."""
    monkeypatch.setattr(parent, "open_store", lambda config: store)
    tracking = TrackingConfig(experiment="parents")
    config: Config = dataclasses.replace(compose_config(), tracking=tracking)

    def opened(folder: Path = tmp_path, **how: Any) -> Run:
        return open_parent("made", folder, config, **how)

    return opened


def test_a_sweep_killed_before_it_noted_its_parent_finds_it(
    opened: Callable[..., Run], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = parent.write_text

    def killed(path: Path, text: str) -> None:
        if "parent_run_id" in text:
            raise KeyboardInterrupt
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(parent, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            opened()
    assert parent_of(tmp_path) is None
    monkeypatch.setattr(WriterProcess, "has_ended", lambda *_, **__: True)
    with opened(take_over=True) as run:
        assert parent_of(tmp_path) == run.run_id
    named = {str(Tag.FOLDER): str(tmp_path)}
    assert store.call("counting", lambda client: _count(client, store, named)) == 1


def _count(client: Any, store: Store, tags: Mapping[str, str]) -> int:
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return len(client.search_runs([store.ensure_experiment("parents")], wanted))


def test_a_sweep_in_a_folder_made_anew_gets_a_parent_of_its_own(
    opened: Callable[..., Run], tmp_path: Path
) -> None:
    with opened() as first:
        pass
    (tmp_path / SWEEP_FILE).unlink()
    with opened() as second:
        pass
    assert first.run_id != second.run_id
    with opened() as third:
        assert third.run_id == second.run_id


def test_the_note_of_the_parent_is_replaced_as_a_whole(
    opened: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened() as run:
        pass

    def killed(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        opened()
    assert parent_of(tmp_path) == run.run_id
