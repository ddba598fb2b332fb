from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flair2_exp.tracking import provenance
from flair2_exp.tracking.provenance import collect, git_state, scrub, scrub_value

secrets = st.text(alphabet="abcXYZ0189_@:%+!", min_size=8, max_size=20)


@settings(max_examples=50)
@given(secrets, secrets, st.sampled_from(["http", "https", "postgresql", "s3"]))
def test_a_password_in_an_address_is_removed_and_the_host_kept(
    user: str, password: str, scheme: str
) -> None:
    text = f"see {scheme}://{user}:{password}@host.example:5000/path?x=1 there"
    assert scrub(text, environment={}) == f"see {scheme}://***@host.example:5000/path?x=1 there"


@settings(max_examples=50)
@given(st.text(max_size=200))
def test_scrubbing_twice_is_scrubbing_once(text: str) -> None:
    once = scrub(text, environment={})
    assert scrub(once, environment={}) == once


@settings(max_examples=50)
@given(st.from_regex(r"[a-z]{1,12}(\.[a-z0-9_]{1,8}){0,2}=[a-z0-9./\-]{1,20}", fullmatch=True))
def test_overrides_without_secrets_stay_as_they_are(line: str) -> None:
    name = re.compile("token|secret|passw|passphrase|api_?key|access_?key|private_?key|credential")
    assert name.search(line) or scrub(line, environment={}) == line


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("HF_TOKEN=abc123", "HF_TOKEN=***"),
        ('"api_key": "abc", "lr": 1', '"api_key": ***, "lr": 1'),
        ("cmd --hub-token abc --lr 1", "cmd --hub-token *** --lr 1"),
        ("Authorization: Bearer abcdefghij0123456789", "Authorization: Bearer ***"),
        ("a hf_" + "A1" * 12 + " b", "a *** b"),
        ("tokens=5 tokenizer=x the token is bad", "tokens=5 tokenizer=x the token is bad"),
        ("git@host.example:group/project", "git@host.example:group/project"),
    ],
)
def test_scrubbing_knows_what_a_secret_looks_like(text: str, clean: str) -> None:
    assert scrub(text, environment={}) == clean


def test_values_of_telling_variables_are_removed_wherever_they_stand() -> None:
    environment = {"MLFLOW_TRACKING_PASSWORD": "correct horse", "HOME": "/home/somebody"}
    text = scrub("at /home/somebody: correct horse!", environment=environment)
    assert text == "at /home/somebody: ***!"


def test_code_keeps_its_meaning_and_loses_its_literals() -> None:
    code = 'token = get_token()\npassword: str\napi_key = "abcdefgh12"\n'
    clean = "token = get_token()\npassword: str\napi_key = '***'\n"
    assert scrub(code, code=True, environment={}) == clean


def test_an_option_named_like_a_secret_is_hidden_whole() -> None:
    assert scrub_value("tracking.password", "open sesame") == "***"
    assert scrub_value("tracking.password", "null") == "null"
    assert scrub_value("model.name", "utt") == "utt"


@pytest.mark.parametrize("piece", ["x", "token", "://", "a-", "secret ", '"', "bearer ", "--token"])
def test_scrubbing_takes_time_linear_in_the_text(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    begin = time.process_time()
    scrub(text, environment={})
    scrub(text, code=True, environment={})
    assert time.process_time() - begin < 5  # 0.1 s measured; a quadratic pattern took hours


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


def test_a_huge_diff_is_cut_with_a_note(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "DIFF_LIMIT", 500)
    (checkout / "module.py").write_text("z = 1\n" * 1000)
    diff = git_state(checkout).diff
    assert len(diff) < 700
    assert "cut here" in diff


def test_a_secret_in_a_diff_is_not_kept(checkout: Path) -> None:
    (checkout / "module.py").write_text('password = "tops3cret99"\n')
    state = git_state(checkout)
    assert state.dirty
    assert "tops3cret99" not in state.diff


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


def test_a_checkout_without_a_commit_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "a.py")
    assert "no commit yet" in git_state(tmp_path).note


def test_what_is_collected_reads_back_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "abcdefgh-the-secret")
    overrides = ["model=utt", "name='it''s'", "tracking.uri=http://me:pw@host:1", "a=[1,2]"]
    argv = [sys.executable, "-m", "flair2_exp", "x=abcdefgh-the-secret", "--token", "zzz", "a b"]
    found = collect(overrides, argv)
    files = found.files()
    kept = yaml.safe_load(files["config/overrides.yaml"])
    assert kept == ["model=utt", "name='it''s'", "tracking.uri=http://***@host:1", "a=[1,2]"]
    assert found.command == "python -m flair2_exp x=*** --token *** 'a b'"
    assert "abcdefgh-the-secret" not in json.dumps(files)
    names = [line.partition("==")[0].lower() for line in found.packages]
    assert names == sorted(names)
    assert {"numpy", "mlflow"} <= set(names)
    machine = files["provenance/machine.json"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert found.tags()["flair2.version"] == found.version


def test_no_overrides_are_an_empty_list() -> None:
    assert yaml.safe_load(collect([], ["python"]).files()["config/overrides.yaml"]) == []
