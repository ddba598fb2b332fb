from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flair2_exp.tracking import provenance
from flair2_exp.tracking.provenance import collect, git_state
from flair2_exp.tracking.tags import Tag


def git(folder: Path, *arguments: str) -> None:
    names = ("-c", "user.name=A", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    subprocess.run(("git", "-C", folder, *names, *arguments), check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "a checkout"
    package = folder / "package"
    package.mkdir(parents=True)
    (package / "module.py").write_text("x = 1\n")
    git(folder, "init", "-q", "-b", "trunk")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "start")
    return package


def test_a_clean_checkout_gives_its_commit_and_branch(checkout: Path) -> None:
    state = git_state(checkout)
    assert re.fullmatch(r"[0-9a-f]{40}", state.commit or "")
    assert (state.branch, state.dirty, state.diff, state.untracked) == ("trunk", False, "", ())


def test_changes_staged_or_not_are_a_diff_that_applies_again(checkout: Path) -> None:
    (checkout / "module.py").write_text("x = 2\n")
    (checkout / "new.py").write_text("y = 1\n")
    git(checkout, "add", "new.py")
    (checkout / "name with ü.txt").write_text("loose")
    state = git_state(checkout)
    assert state.dirty
    assert state.untracked == ("package/name with ü.txt",)
    git(checkout, "reset", "-q", "--hard")
    subprocess.run(("git", "-C", checkout.parent, "apply"), input=state.diff.encode(), check=True)
    assert (checkout / "module.py").read_text() == "x = 2\n"
    assert (checkout / "new.py").read_text() == "y = 1\n"


def test_a_diff_is_kept_without_secrets_and_cut_with_a_note(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "DIFF_LIMIT", 500)
    (checkout / "module.py").write_text('password = "tops3cret99"\n' + "z = 1\n" * 1000)
    diff = git_state(checkout).diff
    assert len(diff) < 700
    assert "cut here" in diff
    assert "password" in diff
    assert "tops3cret99" not in diff


@pytest.mark.parametrize(
    "name",
    [
        ".env", ".env.local", "prod.env", "server.pem", "id_rsa", "id_ed25519", "credentials.json",
        ".netrc", ".pgpass", ".pypirc", "kubeconfig", "secrets.yaml", "deploy.key", "conf/.ENV",
    ],
)  # fmt: skip
def test_a_diff_holds_no_file_that_is_made_for_secrets(checkout: Path, name: str) -> None:
    path = checkout / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("an odd line that no pattern knows\n")
    (checkout / "module.py").write_text("x = 2\n")
    git(checkout, "add", "--force", ".")
    diff = git_state(checkout).diff
    assert "x = 2" in diff
    assert "odd line" not in diff


def test_a_package_installed_inside_somebody_elses_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout.parent / "venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("x = 1\n")
    assert git_state(installed).commit is None


def test_outside_a_checkout_and_without_git_only_the_version_is_known(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not run from a git checkout" in git_state(tmp_path).note
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout) == git_state(tmp_path)


def test_a_checkout_without_a_commit_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "a.py")
    assert "no commit yet" in git_state(tmp_path).note


def test_what_is_collected_reads_back_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "abcdefgh-the-secret")
    overrides = ["model=utt", "name='it''s'", "tracking.uri=http://me:pw@host:1", "a=[1,2]"]
    argv = [sys.executable, "-m", "flair2_exp", "x=abcdefgh-the-secret", "--token", "zzz", "a b"]
    origin = collect(overrides, argv)
    files = origin.files()
    kept = yaml.safe_load(files["config/overrides.yaml"])
    assert kept == ["model=utt", "name='it''s'", "tracking.uri=http://***@host:1", "a=[1,2]"]
    assert origin.command == "python -m flair2_exp x=*** --token *** 'a b'"
    assert "abcdefgh-the-secret" not in json.dumps(files)
    assert f"mlflow=={importlib.metadata.version('mlflow')}" in origin.packages
    names = [line.partition("==")[0].lower() for line in origin.packages]
    assert names == sorted(names)
    assert {"numpy", "mlflow"} <= set(names)
    machine = files["provenance/machine.json"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert origin.tags()[Tag.VERSION] == origin.version


def test_no_overrides_are_an_empty_list() -> None:
    assert yaml.safe_load(collect([], ["python"]).files()["config/overrides.yaml"]) == []
