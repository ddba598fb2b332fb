from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from flair2_exp.optuna_sweeper import SweepError
from flair2_exp.optuna_sweeper.process import Process
from flair2_exp.optuna_sweeper.storage import open_storage
from flair2_exp.optuna_sweeper.study import SWEEP, Plan
from flair2_exp.optuna_sweeper.trial import (
    FACTS,
    VARIABLE,
    RunningTrial,
    Ticket,
    TrialClosed,
    current_trial,
)
from flair2_exp.optuna_sweeper.worker import WORKER

THRESHOLD = {"_target_": "optuna.pruners.ThresholdPruner", "upper": 5.0}


@pytest.fixture
def ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ticket:
    """The ticket of a running trial, in the environment."""
    name = str(tmp_path / "a folder & more" / "journal")
    study = optuna.create_study(study_name="s", storage=open_storage(name))
    trial = study.ask()
    trial.suggest_float("lr", 0, 1)
    trial.set_user_attr(WORKER, Process.this().plain())
    ticket = Ticket(name, "s", trial.number, THRESHOLD, [])
    monkeypatch.setenv(VARIABLE, ticket.encode())
    return ticket


def frozen(ticket: Ticket) -> optuna.trial.FrozenTrial:
    return optuna.load_study(study_name="s", storage=open_storage(ticket.storage)).trials[0]


def trial_of_this_job() -> RunningTrial:
    trial = current_trial()
    assert trial is not None
    return trial


@given(st.text(min_size=1), st.text(min_size=1), st.integers(0), st.text(max_size=5))
def test_a_ticket_comes_back_and_needs_no_quotes(
    storage: str, study: str, number: int, argument: str
) -> None:
    ticket = Ticket(storage, study, number, {"x": argument}, [argument])
    text = ticket.encode()
    assert Ticket.decode(text) == ticket
    assert not set(text) & set(" '\"\\${}\n\t,:#")


def test_outside_of_a_search_there_is_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert current_trial() is None


def test_asking_for_the_trial_outside_of_a_search_imports_no_optuna() -> None:
    code = (
        "import sys; from flair2_exp.optuna_sweeper.trial import current_trial\n"
        "assert current_trial() is None\n"
        "heavy = {'optuna', 'sqlalchemy', 'numpy', 'torch'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reports_reach_the_study_and_the_answer_stays(ticket: Ticket) -> None:
    trial = trial_of_this_job()
    assert trial is current_trial()
    assert (trial.number, trial.study_name) == (0, "s")
    assert set(trial.params) == {"lr"}
    assert [
        trial.report(value, step) for step, value in enumerate([1.0, 2.0, 9.0, 1.0], start=1)
    ] == [
        False,
        False,
        True,
        True,
    ]
    assert trial.should_prune()
    assert frozen(ticket).intermediate_values == {1: 1.0, 2: 2.0, 3: 9.0}
    assert frozen(ticket).user_attrs == {WORKER: Process.this().plain(), "pruned_at": 3}


def test_a_trial_that_was_closed_elsewhere_is_told_so_and_is_not_pruned(ticket: Ticket) -> None:
    trial = trial_of_this_job()
    study = optuna.load_study(study_name="s", storage=open_storage(ticket.storage))
    study.tell(0, state=TrialState.FAIL)
    with pytest.raises(TrialClosed, match="trial 0 was closed by another worker"):
        trial.report(1.0, 1)
    with pytest.raises(TrialClosed):
        trial.prune(1)
    assert not trial.should_prune()


def test_a_jobs_facts_are_those_of_its_study_and_of_the_other_trials(ticket: Ticket) -> None:
    """A job sees what the command that made the study did not, as on another machine."""
    study = optuna.load_study(study_name="s", storage=open_storage(ticket.storage))
    plan = Plan(directions=("minimize",), facts={"weights": "none", "place": "/data"})
    study.set_user_attr(SWEEP, plan.plain())
    trial = trial_of_this_job()
    assert trial.fact_changes({"weights": "none", "data": "first"}) == []
    assert trial.fact_changes({"weights": "a.pt"}) == ["weights was none, now a.pt"]
    for number, state in enumerate(["FAIL", "RUNNING"], start=1):
        other = {FACTS: {"data": f"of trial {number}"}}
        study.add_trial(optuna.create_trial(state=TrialState[state], user_attrs=other))
    assert trial.fact_changes({"data": "first"}) == ["data was of trial 2, now first"]
    study.tell(0, state=TrialState.FAIL)
    with pytest.raises(TrialClosed):
        trial.fact_changes({})


def test_a_storage_that_went_away_costs_the_report_alone(
    ticket: Ticket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial = trial_of_this_job()

    def gone(*_: Any) -> None:
        raise optuna.exceptions.StorageInternalError("server closed the connection")

    with monkeypatch.context() as patch:
        patch.setattr(type(open_storage(ticket.storage)), "set_trial_intermediate_value", gone)
        assert trial.report(1.0, 1) is False
    assert "could not report step 1" in caplog.text
    assert trial.report(9.0, 2)


@pytest.mark.parametrize("text", ["nonsense", "7", "%7B%22storage%22%3A%20%22a%22%7D"])
def test_a_broken_ticket_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(SweepError, match=f"{VARIABLE}=.* is not a trial"):
        current_trial()


def test_a_ticket_of_a_study_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = Ticket(str(tmp_path / "empty"), "s", 3, THRESHOLD, [])
    monkeypatch.setenv(VARIABLE, ticket.encode())
    with pytest.raises(SweepError, match="has no trial s/3"):
        current_trial()
