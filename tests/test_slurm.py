from __future__ import annotations

import signal
from pathlib import Path

import pytest

from flair2_exp import slurm
from flair2_exp.slurm import RefusedError, SilentError, call, call_patiently, fields_of, goes_on


def program(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_client_gets_its_lines_and_answers(tmp_path: Path) -> None:
    assert call([program(tmp_path, "echoes", 'cat; echo "$1"'), "b"], lines=["a"]) == "a\nb\n"


def test_a_refusal_is_in_the_clients_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    program(tmp_path, "dumb", "exit 4")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(RefusedError, match=r"^Invalid account$"):
        call(["sbatch"])
    with pytest.raises(RefusedError, match="dumb ended with status 4"):
        call(["dumb"])


@pytest.mark.parametrize(
    "words",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "squeue: error: slurm_receive_msgs: Zero Bytes were transmitted or received",
    ],
)
def test_a_slurm_that_cannot_be_reached_has_not_refused(words: str, tmp_path: Path) -> None:
    with pytest.raises(SilentError):
        call([program(tmp_path, "client", f"echo '{words}' >&2; exit 1")])


def test_a_client_that_hangs_is_left(tmp_path: Path) -> None:
    with pytest.raises(SilentError, match=r"within 0\.2 seconds"):
        call([program(tmp_path, "client", "exec sleep 20")], seconds=0.2)


def test_what_may_be_asked_twice_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm.time, "sleep", lambda _: None)
    body = f"cd {tmp_path}; echo >>n; [ $(wc -l <n) = 3 ] || {{ echo 'timed out' >&2; exit 1; }}"
    client = program(tmp_path, "client", body + "; echo here")
    assert call_patiently([client]) == "here\n"
    (tmp_path / "n").unlink()
    with pytest.raises(SilentError):
        call_patiently([client], tries=2)


def test_the_fields_of_a_job() -> None:
    line = "JobId=2 ArrayTaskId=5 JobName=a=b JobState=RUNNING CPUs/Task=1 Dependency=(null)"
    assert fields_of(line) == {
        "JobId": "2", "ArrayTaskId": "5", "JobName": "a=b", "JobState": "RUNNING",
        "CPUs/Task": "1", "Dependency": "(null)",
    }  # fmt: skip


START = "StartTime=2026-11-26T10:00:00"
NOW, EARLIER = "PreemptTime=2026-11-26T11:00:00", "PreemptTime=2026-11-26T09:00:00"


@pytest.mark.parametrize(
    ("number", "info", "again"),
    [
        (signal.SIGTERM, f"JobState=RUNNING {START} {NOW}", True),
        (signal.SIGTERM, f"JobState=COMPLETING {START} {NOW}", True),
        (signal.SIGTERM, f"JobState=RUNNING {START} {EARLIER}", False),
        (signal.SIGTERM, f"JobState=RUNNING {START} PreemptTime=None", False),
        (signal.SIGTERM, f"JobState=COMPLETING {START} PreemptTime=None", False),
        (signal.SIGUSR1, f"JobState=RUNNING {START} PreemptTime=None", True),
        (signal.SIGUSR2, f"JobState=RUNNING {START} PreemptTime=None", True),
        # told of the limit, then cancelled before it had ended
        (signal.SIGUSR1, f"JobState=COMPLETING {START} PreemptTime=None", False),
        (signal.SIGINT, f"JobState=RUNNING {START} PreemptTime=None", False),
        (signal.SIGUSR1, "", True),  # no answer
        (signal.SIGTERM, "", False),
    ],
)
def test_a_job_goes_on_where_slurm_takes_its_place_away(
    number: int, info: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = f'[ "$*" = "-o show job 12_3" ] && echo "{info}"' if info else "exit 1"
    program(tmp_path, "scontrol", answer)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv(slurm.JOB, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")  # somebody's own allocation
    assert not goes_on(number)
    monkeypatch.setenv(slurm.JOB, "12_3")
    assert goes_on(number) == again
