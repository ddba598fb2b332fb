"""Jobs in the queue of a real SLURM (`cluster` in conftest.py): small scripts, and one training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.config.engines import SlurmConfig
from flair2_exp.engines.engine import (
    ACTIVE,
    CANCELLED,
    DONE,
    FAILURE,
    QUEUED,
    WITHDRAWN,
    Ending,
)  # fmt: skip
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.engines.pool import Pool
from flair2_exp.engines.slurm import Slurm
from flair2_exp.errors import FlairError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.slurm import RefusedError, call, fields_of
from tests.configs import SMALL_SAMPLE
from tests.engines.scripts import script, status_of, until, written

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("cluster")]

SECONDS = 120.0
"""Of one wait: SLURM looks into its queue every few seconds, and the machine may be busy."""


def engine(**options: Any) -> Slurm:
    return Slurm(SlurmConfig(**{"interval": 0.5, "partition": "low", **options}))


def drain(pool: Pool) -> dict[int, Ending]:
    """Run a pool to its end."""
    endings: dict[int, Ending] = {}

    def ended() -> bool:
        endings.update({command.number: ending for command, ending in pool.poll()})
        return not len(pool)

    until(ended, SECONDS)
    return endings


def started(*jobs: JobCommand, retries: int = 0, **options: Any) -> Pool:
    pool = Pool(engine(**options), retries)
    for job in jobs:
        pool.add(job)
    pool.start()
    return pool


def job_id(folder: RunFolder) -> str:
    submission = Submission.read(folder)
    assert submission is not None
    return submission.id


def details(folder: RunFolder) -> dict[str, str]:
    return fields_of(call(["scontrol", "-o", "show", "job", job_id(folder)]))


def start_now(folder: RunFolder) -> None:
    """Let a job that is queued again start soon: SLURM would wait for two minutes.

    Not at once: a node refuses a start in the second of the end ("credential revoked").
    """
    until(lambda: details(folder)["JobState"] == "PENDING", SECONDS)
    call(["scontrol", "update", f"jobid={job_id(folder)}", "starttime=now+3seconds"])


def starts(folder: RunFolder) -> int:
    return written(folder, "output.log").count("=== start ")


def test_an_array_runs_as_many_at_a_time_as_asked_under_names_of_their_own(tmp_path: Path) -> None:
    code = """
leave("began", repr(time.time()))
time.sleep(1.5)
leave("ended", repr(time.time()))
finish()
"""
    jobs = [script(tmp_path, number, code) for number in range(5)]
    pool = started(*jobs, at_once=2)
    names = call(["squeue", "-h", "-r", "-o", "%F_%K|%j"]).splitlines()
    for job in jobs:
        assert f"{job_id(job.folder)}|made/row/seed={job.number}" in names
    assert {ending.cause for ending in drain(pool).values()} == {DONE}
    began = sorted(float(written(job.folder, "began")) for job in jobs)
    ended = sorted(float(written(job.folder, "ended")) for job in jobs)
    most = max(sum(b <= at for b in began) - sum(e < at for e in ended) for at in began)
    assert most == 2


def test_a_run_that_fails_is_a_failed_job_and_its_reason_is_kept(tmp_path: Path) -> None:
    refused = "print('flair2-exp: trainer.devices=7: no', file=sys.stderr); sys.exit(1)"
    failed = "record('FAILED', 'ValueError: 3'); sys.exit(5)"
    jobs = [script(tmp_path, 0, refused), script(tmp_path, 1, failed), script(tmp_path, 2)]
    endings = drain(started(*jobs, retries=2))
    assert endings == {
        0: Ending(FAILURE, "trainer.devices=7: no"), 1: Ending(FAILURE, "ValueError: 3"),
        2: Ending(DONE),
    }  # fmt: skip
    codes = [(details(job.folder)["JobState"], details(job.folder)["ExitCode"]) for job in jobs]
    assert codes == [("FAILED", "1:0"), ("FAILED", "5:0"), ("COMPLETED", "0:0")]
    assert [starts(job.folder) for job in jobs] == [1, 1, 1]


def test_ranks_are_started_on_as_many_tasks_as_devices(tmp_path: Path) -> None:
    code = """
rank = os.environ["SLURM_PROCID"]
leave(f"rank{rank}", os.environ["SLURM_NTASKS"])
if rank == "0":
    wait_for("job0/rank1")
    finish()
"""
    job = script(tmp_path, 0, code)
    object.__setattr__(job, "processes", 2)
    assert drain(started(job)) == {0: Ending(DONE)}
    assert written(job.folder, "rank1") == "2"


WAITS = """
def end(number, frame):
    print("ended by", number, flush=True)
    advance()
    record("KILLED" if number == signal.SIGTERM and not PREEMPTS else "PREEMPTED")
    sys.exit(128 + number)
PREEMPTS = {preempts}
if starts() > 1:
    finish()
    sys.exit()
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, end)
leave("waits", "yes")
while True:
    time.sleep(0.05)
"""


def waiting(tmp_path: Path, number: int = 0, *, preempts: bool = False, gpus: float = 0.0) -> Any:
    """A job that waits for a signal in its first start, and is done in its second."""
    return script(tmp_path, number, WAITS.format(preempts=preempts), gpus)


def test_a_cancelled_job_ends_by_itself_and_stays_cancelled(tmp_path: Path) -> None:
    runs, queued = waiting(tmp_path), waiting(tmp_path, 1)
    pool = started(runs, queued, at_once=1, retries=2)
    until(lambda: written(runs.folder, "waits"), SECONDS)
    call(["scancel", job_id(runs.folder), job_id(queued.folder)])
    endings = drain(pool)
    assert endings == {0: Ending(WITHDRAWN, "cancelled"), 1: Ending(WITHDRAWN, "cancelled")}
    assert status_of(runs.folder) == "KILLED"
    assert starts(runs.folder) == 1
    assert starts(queued.folder) == 0
    before = Submission.read(queued.folder)
    assert before is not None
    assert engine().states({"it": before}) == {"it": CANCELLED}


def test_a_preempted_job_queues_itself_again_and_is_still_the_same_job(tmp_path: Path) -> None:
    job = waiting(tmp_path, preempts=True, gpus=4)
    pool = started(job)
    until(lambda: written(job.folder, "waits"), SECONDS)
    call(["srun", "--partition=high", "--gres=gpu:4", "--quiet", "true"], seconds=SECONDS)
    until(lambda: "is queued again" in written(job.folder, "output.log"), SECONDS)
    number = job_id(job.folder)
    start_now(job.folder)
    assert drain(pool) == {0: Ending(DONE)}
    assert job_id(job.folder) == number
    assert starts(job.folder) == 2
    assert "ended by 15" in written(job.folder, "output.log")


def test_a_job_is_told_of_its_time_limit_and_goes_on_in_a_further_one(tmp_path: Path) -> None:
    job = waiting(tmp_path)
    pool = started(job, sbatch=("--time=1",), grace=30)
    until(lambda: written(job.folder, "waits"), SECONDS)
    until(lambda: "ended by 10" in written(job.folder, "output.log"), SECONDS)
    start_now(job.folder)
    assert drain(pool) == {0: Ending(DONE)}
    assert starts(job.folder) == 2


def test_a_signal_before_python_has_its_handlers_queues_the_job_again(tmp_path: Path) -> None:
    code = """
if starts() > 1:
    finish()
else:
    leave("waits", "yes")
    time.sleep(100)
"""
    job = script(tmp_path, 0, code)
    pool = started(job)
    until(lambda: written(job.folder, "waits"), SECONDS)
    call(["scancel", "--signal=USR1", job_id(job.folder)])
    start_now(job.folder)
    assert drain(pool) == {0: Ending(DONE)}


@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_a_killed_step_is_no_preemption_and_is_tried_again(number: str, tmp_path: Path) -> None:
    job = waiting(tmp_path)
    pool = started(job, retries=1)
    until(lambda: written(job.folder, "waits"), SECONDS)
    first = job_id(job.folder)
    call(["scancel", f"--signal={number}", f"{first}.0"])
    assert drain(pool) == {0: Ending(DONE)}
    assert job_id(job.folder) != first


def test_another_command_takes_over_what_is_queued_and_running(tmp_path: Path) -> None:
    jobs = [waiting(tmp_path), script(tmp_path, 1), script(tmp_path, 2)]
    started(jobs[0], jobs[1], at_once=1)  # and that command is gone
    until(lambda: written(jobs[0].folder, "waits"), SECONDS)
    ids = [job_id(job.folder) for job in jobs[:2]]
    pool = Pool(engine(at_once=1), 0)
    assert [pool.add(job) for job in jobs] == [True, True, False]
    pool.start()
    assert [job_id(job.folder) for job in jobs[:2]] == ids
    states = engine().states({str(n): _submission(job.folder) for n, job in enumerate(jobs)})
    assert states == {"0": ACTIVE, "1": QUEUED, "2": QUEUED}
    call(["scancel", "--signal=USR1", ids[0]])
    until(lambda: "is queued again" in written(jobs[0].folder, "output.log"), SECONDS)
    start_now(jobs[0].folder)
    assert drain(pool) == {0: Ending(DONE), 1: Ending(DONE), 2: Ending(DONE)}


def _submission(folder: RunFolder) -> Submission:
    submission = Submission.read(folder)
    assert submission is not None
    return submission


def test_a_later_array_never_runs_beside_more_than_asked_and_gets_the_room_of_the_first(
    tmp_path: Path,
) -> None:
    code = """
leave("began", repr(time.time()))
time.sleep({seconds})
leave("ended", repr(time.time()))
finish()
"""
    jobs = [script(tmp_path, n, code.format(seconds=1 + n % 3)) for n in range(8)]
    pool = Pool(engine(at_once=3), 0)
    for job in jobs[:4]:
        pool.add(job)
    pool.start()
    for job in jobs[4:]:
        pool.add(job)
    pool.start()
    assert {ending.cause for ending in drain(pool).values()} == {DONE}
    began = sorted(float(written(job.folder, "began")) for job in jobs)
    ended = sorted(float(written(job.folder, "ended")) for job in jobs)
    counts = [sum(b <= at for b in began) - sum(e < at for e in ended) for at in began]
    assert max(counts) == 3
    assert max(counts[4:]) > 1  # the later ones, too


def test_without_accounts_the_end_of_a_job_is_seen_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sacct").write_text("#!/bin/sh\necho 'accounting is disabled' >&2; exit 1\n")
    (programs / "squeue").write_text("#!/bin/sh\nexit 0\n")  # and the queue has forgotten it
    for program in programs.iterdir():
        program.chmod(0o755)
    jobs = [script(tmp_path, 0), waiting(tmp_path, 1)]
    assert drain(started(jobs[0])) == {0: Ending(DONE)}
    started(jobs[1])
    until(lambda: written(jobs[1].folder, "waits"), SECONDS)
    call(["scancel", job_id(jobs[1].folder)])
    until(lambda: details(jobs[1].folder)["JobState"] == "CANCELLED", SECONDS)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    states = engine().states({str(n): _submission(job.folder) for n, job in enumerate(jobs)})
    assert states == {"0": "ended", "1": CANCELLED}


def test_what_slurm_refuses_is_refused_before_anything_runs(tmp_path: Path) -> None:
    job = script(tmp_path, 0)
    with pytest.raises(FlairError, match=r"sbatch refused the jobs: .*[Pp]artition"):
        started(job, partition="nowhere")
    assert not job.folder.path.exists()


def test_clients_that_are_not_here_refuse() -> None:
    with pytest.raises(RefusedError, match="No such file"):
        call(["no-such-client"])


SWEEP = (
    "model=unet", "data=aerial_only", "preset=debug", "seed=1", "trainer.max_epochs=30",
    "sweep.report=false", "trainer=cpu", *SMALL_SAMPLE,
)  # fmt: skip


@pytest.mark.timeout(900)
def test_a_training_that_is_cut_into_jobs_scores_as_one_that_is_not(tmp_path: Path) -> None:
    def sweep(name: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flair2_exp", "--multirun", *SWEEP, *words]
        command += [f"sweep.name={name}", f"paths.root={tmp_path}"]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
        )

    whole = sweep("whole")
    out, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, out
    cut = sweep("cut", "hydra/launcher=slurm", "hydra.launcher.interval=0.5")
    folder = RunFolder(tmp_path / "multirun" / "cut" / "0_unet_seed=1")
    try:
        until(lambda: "epoch 3/" in written(folder, "output.log"), SECONDS)
        call(["scancel", "--signal=USR1", job_id(folder)])
        until(lambda: "is queued again" in written(folder, "output.log"), SECONDS)
        assert status_of(folder) == "PREEMPTED"
        run_id = json.loads(folder.record.read_text())["run_id"]
        run = _mlflow_run(tmp_path, run_id)
        assert run["status"] == "RUNNING"
        assert run["tags"]["flair2.preempted"] == "true"
        assert "flair2.pid" not in run["tags"]
        start_now(folder)
        until(lambda: "from which the run resumes" in written(folder, "output.log"), SECONDS)
        call(["scancel", "--signal=USR1", job_id(folder)])  # while it prepares, or trains
        until(lambda: written(folder, "output.log").count("is queued again") == 2, SECONDS)
        start_now(folder)
        out, _ = cut.communicate(timeout=200)
    finally:
        cut.kill()
    assert cut.returncode == 0, out
    unkilled = RunFolder(tmp_path / "multirun" / "whole" / "0_unet_seed=1")
    scores = [json.loads(each.metrics.read_text()) for each in (folder, unkilled)]
    exact = [{k: v for k, v in each.items() if "seconds" not in k} for each in scores]
    assert exact[0] == exact[1]
    assert starts(folder) == 3
    run = _mlflow_run(tmp_path, run_id)
    assert run["status"] == "FINISHED"
    assert "flair2.preempted" not in run["tags"]


def _mlflow_run(root: Path, run_id: str) -> dict[str, Any]:
    from flair2_exp.tracking.store import local_uri, open_store

    store = open_store(local_uri(root / "mlruns"))
    run = store.call("reading", lambda client: client.get_run(run_id))
    return {"status": run.info.status, "tags": dict(run.data.tags)}


def test_signals_are_numbered_as_the_script_of_a_task_has_them() -> None:
    assert (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2) == (15, 10, 12)
