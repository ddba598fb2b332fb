"""A command line begins with a verb, or is Hydra's."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flair2_exp.cli import ui
from flair2_exp.cli.verbs import RUN, VERBS, verb_of
from flair2_exp.errors import UsageError
from flair2_exp.lifecycle.delivery import Delivery
from flair2_exp.sweeps.delivery import Deliverer
from flair2_exp.tracking import store, view
from tests.commands import answer


@pytest.mark.parametrize("words", [[], ["seed=1"], ["-m", "deliver"], ["+deliver=1"], ["xyz"]])
def test_what_does_not_begin_with_a_verb_is_hydras(words: list[str]) -> None:
    assert verb_of(words) is None


@pytest.mark.parametrize("word", ["delivr", "Deliver", "delivery", "delvier"])
def test_a_word_that_is_nearly_a_verb_is_explained(word: str) -> None:
    with pytest.raises(UsageError, match="did you mean `flair2-exp deliver`"):
        verb_of([word])
    told = answer(word)
    assert (told.status, told.err.count("\n")) == (2, 1)


def test_help_lists_the_verbs_and_each_has_its_own() -> None:
    told = answer("--help").out
    for name, verb in VERBS.items():
        assert f"  {name} " in told
        assert verb.help in told
        shown = answer(name, "--help")
        assert shown.status == 0
        if name != RUN:
            _require_screen(shown.out)
    _require_screen(told, lines=45)
    assert "--tracking-uri" in answer("deliver", "--help").out
    assert answer("deliver", "--what").status == 2


def _require_screen(text: str, lines: int = 48) -> None:
    assert len(text.splitlines()) <= lines, text
    assert max(map(len, text.splitlines())) <= 80, text


def test_a_verb_says_on_standard_error_what_takes_long(tmp_path: Path) -> None:
    words = ["--patch-size", "32", "--domains", "6", "--areas-per-domain", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "flair2_exp", "sample", str(tmp_path / "new"), *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'new'}\n"
    assert done.stderr == f"writing the synthetic sample to {tmp_path / 'new'}, this once\n"


def test_the_words_behind_a_flag_that_takes_several_are_all_its_own() -> None:
    words = ["RUN", "--image", "a.tif", "b.tif", "--out", "m.tif", "--probabilities", "--cog"]
    command = VERBS["predict"].command
    with command.make_context("predict", words) as ctx:
        assert ctx.params["run"] == "RUN"
        assert ctx.params["image"] == (Path("a.tif"), Path("b.tif"))
        assert ctx.params["probabilities"] == ("",)  # all classes
        assert ctx.params["cog"]
    words = ["--ensemble", "A", "B", "--weights", "1", "2.5", "--split", "test"]
    with command.make_context("predict", words) as ctx:
        assert ctx.params["run"] is None
        assert ctx.params["ensemble"] == ("A", "B")
        assert ctx.params["weights"] == (1.0, 2.5)


def test_ui_says_where_there_are_no_runs_and_serves_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = answer("ui")
    assert told.status == 1
    assert f"{tmp_path}/mlruns: no runs here yet" in told.err
    assert list(tmp_path.iterdir()) == []
    opened: list[str] = []
    served: list[tuple[str, int]] = []
    monkeypatch.setattr(store, "open_store", opened.append)
    monkeypatch.setattr(view, "address", lambda place, _: f"http://{place}/#/experiments/7")
    monkeypatch.setattr(ui, "_serve", lambda uri, port: served.append((uri, port)) or 0)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = answer("ui", "--port", str(port))
    ((uri, other),) = served
    assert opened == [uri] == [f"sqlite:///{tmp_path}/mlruns/mlflow.db"]
    assert other > port
    assert f"Port {port} is taken; this is {other}." in told.out
    assert f"http://127.0.0.1:{other}/#/experiments/7" in told.out


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    told = answer("deliver", str(tmp_path / "gone"))
    assert (told.status, told.err.count("\n")) == (1, 1)


@pytest.mark.parametrize(("left", "status"), [(0, 0), (3, 1)])
def test_each_folder_gets_a_line_and_what_is_left_the_status(
    left: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deliverer, "below", lambda _, start: iter([Delivery(start, "sent", left)]))
    told = answer("deliver", str(tmp_path))
    assert told.status == status
    assert f"{tmp_path}: sent" in told.out
    assert ("3 left" in told.out) == bool(left)


def test_where_nothing_lies_there_is_nothing_to_deliver_and_no_mlflow_is_loaded(
    tmp_path: Path,
) -> None:
    code = (
        "import sys\nfrom flair2_exp.cli.main import main\n"
        "try:\n    main(['deliver'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'mlflow', 'torch', 'lightning'} & set(sys.modules)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "MLflow has everything" in told.stdout
    assert told.stdout.endswith("[]\n")
    assert list(tmp_path.iterdir()) == []
