"""The page of a study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from flair2_exp.optuna_sweeper.results import SearchResult
from flair2_exp.optuna_sweeper.space import read_space
from flair2_exp.sweeps import study_page
from flair2_exp.sweeps.study_figures import write_figures
from flair2_exp.sweeps.study_page import trial_table, write_page
from tests.sweeps.studies import made_result

RATES = optuna.distributions.FloatDistribution(0, 1)


@pytest.fixture(autouse=True)
def _default(monkeypatch: pytest.MonkeyPatch) -> None:
    """What composing needs a running command for."""
    monkeypatch.setattr(study_page, "default_values", lambda _: {"optimizer.lr": 0.5})
    monkeypatch.setattr(study_page, "repeated", lambda _: ["default", "best"])


def result_of(folder: Path, values: list[float | None]) -> SearchResult:
    """A study of one objective, None for a trial that failed."""
    study = optuna.create_study(study_name="<b>s</b>", direction="maximize")
    for at, value in enumerate(values):
        state = getattr(optuna.trial.TrialState, "FAIL" if value is None else "COMPLETE")
        study.add_trial(optuna.create_trial(
            value=value, state=state, params={"optimizer.lr": at / 100},
            distributions={"optimizer.lr": RATES},
        ))  # fmt: skip
    space = read_space({"optimizer.lr": "interval(0,1)"}, [], None)
    folder.mkdir(exist_ok=True)
    made = made_result(folder, 0)
    return replace(made, study=study, trials=study.trials, best=[study.best_trial],
                   objective=("val/miou",), space=space)  # fmt: skip


def page_of(result: SearchResult) -> str:
    files = [result.folder / "experiment" / "best.yaml"]
    page = write_page(result, [], files, result.folder / "figures", synthetic=True)
    return page.read_text(encoding="utf-8")


def test_it_shows_the_best_beside_the_default_and_all_trials(tmp_path: Path) -> None:
    result = result_of(tmp_path, [0.1, None, 0.3])
    text = page_of(result)
    assert "&lt;b&gt;s&lt;/b&gt;" in text
    assert "<b>s</b>" not in text
    assert "trial 2" in text
    assert "Aim: maximize val/miou. 3 trials: 2 complete, 1 fail." in text
    assert "Synthetic sample data" in text
    assert "script-src" not in text
    assert "tune.repeat_best=3" in text
    assert [line[0] for line in trial_table(result).cells] == ["2", "0", "1"]


def test_it_shows_what_repeating_the_best_found(tmp_path: Path) -> None:
    result = result_of(tmp_path, [0.1, 0.3])
    report = tmp_path / "repeat_best" / "report"
    report.mkdir(parents=True)
    rows = [{"row": "s_default", "seeds": [1, 2], "miou_value": 0.5}]
    content = {"rows": rows, "findings": ["best − default: +0.1"]}
    (report / "leaderboard.json").write_text(json.dumps(content))
    (report / "leaderboard.html").touch()
    text = page_of(result)
    assert "s_default: test mIoU 0.5000, 2 seeds." in text
    assert "best − default: +0.1" in text
    assert 'href="../repeat_best/report/leaderboard.html"' in text
    assert "tune.repeat_best=3" not in text.partition("Figures")[0].partition("On the test set")[2]


@pytest.mark.parametrize(("trials", "cautious"), [(29, True), (30, False)])
def test_importance_says_its_trials_and_is_cautious_below_thirty(
    tmp_path: Path, trials: int, cautious: bool
) -> None:
    result = result_of(tmp_path, [at / 100 for at in range(trials)])
    image = tmp_path / "importance.png"
    image.write_bytes(b"PNG")
    drawn = [study_page.Drawn("importance", image)]
    page = write_page(result, drawn, [tmp_path / "best.yaml"], tmp_path, synthetic=False)
    text = page.read_text(encoding="utf-8")
    assert f"From {trials} complete trials." in text
    assert ("a hint at best" in text) == cautious


def test_the_page_is_interactive_also_where_the_first_figure_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an exception of whatever kind costs that figure alone."""
    visualization = pytest.importorskip("optuna.visualization")
    pytest.importorskip("plotly", reason="the extra `tune-figures`")

    def broken(*_: object, **__: object) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr(visualization, "plot_pareto_front", broken)
    monkeypatch.setattr(study_page, "default_values", lambda _: {"seed": 0})
    result = made_result(tmp_path, 4)
    drawn = write_figures(result, tmp_path / "figures")
    page = write_page(result, drawn, [tmp_path / "best.yaml"], tmp_path, synthetic=False)
    text = page.read_text(encoding="utf-8")
    assert len(text) > 1_000_000  # plotly's program
    assert "Plotly.newPlot" in text
    assert "script-src 'unsafe-inline'" in text
    assert "pareto_front.png" in {each.path.name for each in drawn}
