"""No credential of a command is kept anywhere, and a run with one is recognised all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import answer
from tests.configs import SMALL_SAMPLE

SECRETS = ("hunter2hunter2", "ghp_" + "a1" * 18, "xoxb-1234567890-abcdefGHIJ")


def test_no_credential_of_a_command_is_kept_and_the_run_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    password, token, slack = SECRETS
    line = (
        "preset=debug", "trainer=cpu", "data.workers=0", "model=unet", "data=aerial_only",
        *SMALL_SAMPLE, "hydra.run.dir=run", f"tracking.run_name='with {token}'",
        f"+tracking.tags={{db_password:{password},note:{slack}}}",
    )  # fmt: skip
    done = answer(*line)
    assert done.status == 0, done.err
    again = answer(*line)
    assert again.status == 0, again.err
    assert "finished before" in again.out
    shown = (done.out + done.err + again.out + again.err).encode()
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert (tmp_path / "run" / ".hydra" / "overrides.yaml") in kept
    for secret in SECRETS:
        assert secret.encode() not in shown
        assert [path for path, content in kept.items() if secret.encode() in content] == []
