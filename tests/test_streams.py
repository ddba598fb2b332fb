"""Standard streams: what cannot be shown or written ends no command, and no work."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flair2_exp.streams import settle

ROOT = Path(__file__).parents[1]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
SHOWS = f"{sys.executable} -m flair2_exp --help"
WORKS = (
    f"{sys.executable} -c 'import logging, sys; from flair2_exp import streams; streams.settle();"
    ' logging.basicConfig(stream=sys.stdout); [(print("é"), logging.error("é")) for _ in range(9)];'
    ' sys.stdout.flush(); open("done", "w")\''
)
SCRIPTS = ("check", "download", "leaderboard", "prepare", "sample", "benchmark")


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line in bash, with the package importable."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "scripts")))
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=folder, timeout=120,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("end", "status"),
    [("| true; exit ${PIPESTATUS[0]}", 141), (">&-", 0), (">&- 2>&-", 0), (">/dev/full", 1)],
)
def test_a_command_that_shows_something_says_by_its_status_that_nobody_read_it(
    end: str, status: int, tmp_path: Path
) -> None:
    done = shell(f"{SHOWS} {end}", tmp_path)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == (status == 1)


@pytest.mark.parametrize("end", ["| true; exit ${PIPESTATUS[0]}", ">&- 2>&-", ">/dev/full 2>&1"])
def test_work_goes_on_where_its_output_is_lost(end: str, tmp_path: Path) -> None:
    done = shell(f"{WORKS} {end}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    assert (tmp_path / "done").read_bytes() == b""  # what was printed went nowhere else


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_survives_a_poor_terminal_and_a_reader_that_leaves(
    name: str, tmp_path: Path
) -> None:
    shown = "--list" if name == "download" else "--help"
    script = f"{sys.executable} {ROOT}/scripts/{name}.py"
    assert "Error" not in shell(f"{script} --é", tmp_path, **ASCII).stderr
    assert shell(f"{script} {shown} | true", tmp_path, **ASCII).stderr == ""


def test_a_folder_may_have_any_name_in_any_locale(tmp_path: Path) -> None:
    line = f"{sys.executable} -m flair2_exp --cfg job -p name 'name=\"données\"'"
    done = shell(line, tmp_path, **ASCII)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() in ("donn\\xe9es", "donn\\u00e9es")


def _without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a file as text without saying in which encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if ast.unparse(call.func) in ("rasterio.open", "formatter.write_text"):  # the latter: Click's
        return False
    if isinstance(call.func, ast.Name):
        name = "builtin" if call.func.id == "open" else ""
    options = {each.arg for each in call.keywords}
    if name in ("read_text", "write_text"):
        return "encoding" not in options and len(call.args) < (2 if name == "write_text" else 1)
    modes = [
        each.value for each in call.args[name == "builtin" :] if isinstance(each, ast.Constant)
    ]
    modes += [
        each.value
        for argument in call.args
        if isinstance(argument, ast.IfExp)
        for each in (argument.body, argument.orelse)
        if isinstance(each, ast.Constant)
    ]
    text = any(isinstance(mode, str) and "b" not in mode for mode in modes) or "newline" in options
    return name in ("open", "builtin") and text and "encoding" not in options


def test_every_text_file_has_its_encoding_whatever_the_locale() -> None:
    paths = [*ROOT.glob("flair2_exp/**/*.py"), *ROOT.glob("scripts/**/*.py")]
    calls = [
        (path, each) for path in paths for each in ast.walk(ast.parse(path.read_text("utf-8")))
    ]
    assert not [
        f"{path}:{call.lineno}"
        for path, call in calls
        if isinstance(call, ast.Call) and _without_encoding(call)
    ]


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "20000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "9"}, "9")],
)
def test_threads_that_wait_give_their_core_away_unless_a_user_says_otherwise(
    given: dict[str, str], count: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is put back at the end
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settle()
    assert os.environ.get("GOMP_SPINCOUNT") == count


FOR_OTHERS = {
    "MPLBACKEND": "module://nowhere", "PYTHONWARNINGS": "error", "LC_ALL": "C", "COLUMNS": "0",
    "TERM": "dumb", "NO_COLOR": "1", "OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "-1",
    "MLFLOW_RUN_ID": "x", "MLFLOW_EXPERIMENT_ID": "77", "PYTHONOPTIMIZE": "1",
}  # fmt: skip


def test_what_is_set_for_other_programs_ends_no_command(tmp_path: Path) -> None:
    program = (
        "from flair2_exp.streams import settle\nsettle()\n"
        "import os, warnings, matplotlib\n"
        "warnings.warn('a library says', DeprecationWarning)\nwarnings.warn('a library says')\n"
        "raise SystemExit(matplotlib.get_backend() != 'agg' or 'PYTHONWARNINGS' in os.environ)"
    )
    for line in (["-c", program], [str(ROOT / "scripts/leaderboard.py"), "--help"]):
        done = subprocess.run(
            [sys.executable, *line], cwd=tmp_path, env={**os.environ, **FOR_OTHERS},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
