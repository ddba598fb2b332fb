"""Jobs in SLURM's queue, against clients that say what the test has written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flair2_exp.config.engines import SlurmConfig
from flair2_exp.engines import slurm as module
from flair2_exp.engines.engine import ACTIVE, CANCELLED, ENDED, QUEUED
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.engines.slurm import Slurm
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.locking import locked
from flair2_exp.slurm import JOB, SilentError
from tests.commands import answer
from tests.engines.clients import Clients, submission_of


def command(root: Path, number: int, *words: str, **options: Any) -> JobCommand:
    folder = RunFolder(root / "multirun" / "sw" / f"row{number}" / "seed=1")
    title = f"sw/row{number}/seed=1"
    sweep = root / "multirun" / "sw"
    return JobCommand(number, title, folder, words, root, root=sweep, **options)


def commands(root: Path, number: int, **options: Any) -> list[JobCommand]:
    return [command(root, place, f"seed={place}", **options) for place in range(number)]


def engine(**options: Any) -> Slurm:
    return Slurm(SlurmConfig(**options))


def submit(slurm: Slurm, jobs: Sequence[JobCommand]) -> int:
    return slurm.start(jobs, [1] * len(jobs))


def submissions(jobs: Sequence[JobCommand]) -> dict[str, Submission]:
    found = {str(job.number): Submission.read(job.folder) for job in jobs}
    return {key: each for key, each in found.items() if each is not None}


def queue(*states: str, number: int = 101, script: str = "x") -> str:
    lines = (f"{number}|{place}|{state}|{script}" for place, state in enumerate(states))
    return "".join(f"{line}\n" for line in lines)


def option(words: Sequence[str], name: str) -> str | None:
    values = [word.partition("=")[2] for word in words if word.partition("=")[0] == name]
    return values[-1] if values else None


# --- submitting ---------------------------------------------------------------------------------


def test_one_submission_is_one_array_with_a_limit_and_the_sites_options(
    tmp_path: Path, clients: Clients
) -> None:
    jobs = commands(tmp_path, 6, gpus=2.0, processes=2, nodes=3, workers=4)
    slurm = engine(
        at_once=4, time="2-00:00:00", grace=90, account="a@v100", partition="p", qos="q",
        constraint="v100", memory="64G", sbatch=("--hint=nomultithread", "--exclusive"),
    )  # fmt: skip
    assert submit(slurm, jobs) == 6
    (words,) = clients.said("sbatch")
    wanted = {
        "--array": "0-5%4", "--job-name": "sw", "--nodes": "3", "--ntasks-per-node": "2",
        "--cpus-per-task": "5", "--gres": "gpu:2", "--time": "2-00:00:00", "--signal": "USR1@90",
        "--account": "a@v100", "--partition": "p", "--qos": "q", "--constraint": "v100",
        "--mem": "64G", "--hint": "nomultithread", "--export": "ALL", "--open-mode": "append",
        "--chdir": str(tmp_path),
    }  # fmt: skip
    assert {name: option(words, name) for name in wanted} == wanted
    assert {"--requeue", "--parsable", "--exclusive"} <= set(words)
    assert option(words, "--dependency") is None
    assert words[-1] == str(tmp_path / "multirun" / "sw" / "slurm" / "1" / "job.sh")
    assert [each.id for each in submissions(jobs).values()] == [f"101_{n}" for n in range(6)]
    assert clients.updates()[3] == "update jobid=101_3 jobname=sw/row3/seed=1"


@pytest.mark.parametrize(
    ("options", "gpus", "cores", "asked"),
    [
        ({}, 4.0, "1", "--gres=gpu:4"),
        ({"gpus": "--gpus-per-node=a100:{n}"}, 4.0, "1", "--gpus-per-node=a100:4"),
        ({"gpus_per_job": 0.0}, 4.0, "1", None),
        ({"gpus_per_job": 1.0}, 0.0, "1", "--gres=gpu:1"),
        ({"cores_per_job": 20}, 0.0, "10", None),
        ({"cores_per_job": 20, "cores_per_process": 7}, 0.0, "7", None),
    ],
)
def test_gpus_and_cores_are_asked_for_as_the_options_say(
    options: dict[str, Any], gpus: float, cores: str, asked: str | None,
    tmp_path: Path, clients: Clients,
) -> None:  # fmt: skip
    submit(engine(**options), [command(tmp_path, 0, gpus=gpus, processes=2)])
    (words,) = clients.said("sbatch")
    assert option(words, "--cpus-per-task") == cores
    given = [word for word in words if word.startswith(("--gres", "--gpus"))]
    assert given == ([asked] if asked else [])


def test_jobs_of_other_needs_are_another_array_and_no_array_is_larger_than_slurm_takes(
    tmp_path: Path, clients: Clients
) -> None:
    jobs = commands(tmp_path, 5)
    jobs[3:] = [replace(job, gpus=1.0) for job in jobs[3:]]
    clients.write("most", "3")
    assert submit(engine(), jobs) == 5
    assert [option(words, "--array") for words in clients.said("sbatch")] == ["0-1", "0-0", "0-1"]
    ids = [each.id for each in submissions(jobs).values()]
    assert ids == ["101_0", "101_1", "102_0", "103_0", "103_1"]


def test_what_sbatch_refuses_is_refused_in_its_words_and_leaves_nothing(
    tmp_path: Path, clients: Clients
) -> None:
    jobs = commands(tmp_path, 3)
    earlier = Submission("slots", "7")
    earlier.write(jobs[1].folder)
    before = sorted(tmp_path.rglob("*"))
    clients.write("refuse", "sbatch: error: Batch job submission failed: Invalid account")
    with pytest.raises(FlairError, match="refused the jobs: Batch job submission failed: Invalid"):
        submit(engine(), jobs)
    made = {clients.folder / "refuse", clients.folder / "said"}
    assert set(tmp_path.rglob("*")) - made == set(before)
    assert Submission.read(jobs[1].folder) == earlier


def test_jobs_beyond_what_an_account_may_queue_wait_here(
    tmp_path: Path, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = commands(tmp_path, 4)
    slurm = engine()
    assert submit(slurm, jobs[:2]) == 2
    clients.write("refuse", "sbatch: error: QOSMaxSubmitJobPerUserLimit")
    assert submit(slurm, jobs[2:]) == 0
    assert submit(slurm, jobs[2:]) == 0
    assert caplog.text.count("2 jobs wait here: sbatch refused the jobs: QOSMaxSubmit") == 1


def test_credentials_reach_the_job_and_no_file(tmp_path: Path, clients: Clients) -> None:
    secret = "postgresql://me:hunter22@server/runs"
    clients.program("sbatch", 'env >environment; cp "${!#}" script; echo 101\n')
    job = command(tmp_path, 0, f"tracking.uri={secret}")
    submit(engine(), [job])
    files = [path for path in (tmp_path / "multirun").rglob("*") if path.is_file()]
    assert files
    assert not any("hunter22" in path.read_text() for path in files)
    clients.write("step", "exit 0")
    clients.program("srun", 'printf "%s\\n" "$@" >words\n')
    environment = dict(
        line.split("=", 1)
        for line in (clients.folder / "environment").read_text().splitlines()
        if line.startswith("FLAIR2_WORD")
    )
    run_script(tmp_path, clients, **environment)
    assert f"tracking.uri={secret}" in (clients.folder / "words").read_text().splitlines()


def test_a_command_within_a_job_hands_on_nothing_of_that_job(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_NTASKS", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", JOB, "SLURM_CONF"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    clients.program("sbatch", "env >environment; echo 101\n")
    submit(engine(), [command(tmp_path, 0)])
    lines = (clients.folder / "environment").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert {"SLURM_CONF", "SBATCH_ACCOUNT"} <= names
    assert not names & {"SLURM_NTASKS", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", JOB}


def test_where_slurm_falls_silent_the_next_command_finds_what_was_submitted(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    silent = "echo 'Unable to contact slurm controller' >&2; exit 1\n"
    clients.program("sbatch", silent)
    clients.program("squeue", silent)
    job = command(tmp_path, 0)
    with pytest.raises(FlairError, match="whether the jobs are queued is not known"):
        submit(engine(), [job])
    script = str(submission_of(job.folder.path)["details"]["script"])
    assert Path(script).exists()
    clients.program("squeue", "cat queue\n")
    clients.write("queue", queue("PENDING", number=88, script=script))
    assert engine().states(submissions([job])) == {"0": QUEUED}


@pytest.mark.parametrize("known", [True, False])
def test_an_sbatch_that_does_not_answer_is_looked_for_in_the_queue(
    known: bool, tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    clients.write("refuse", "sbatch: error: Socket timed out on send/recv operation")
    job = command(tmp_path, 0)
    script = str(tmp_path / "multirun/sw/slurm/1/job.sh")
    clients.write("queue", queue("PENDING", number=77, script=script if known else "other"))
    if known:
        submit(engine(), [job])
        assert submission_of(job.folder.path)["id"] == "77_0"
    else:
        with pytest.raises(FlairError, match="did not answer, and no such jobs are in the queue"):
            submit(engine(), [job])
        assert not job.folder.job.exists()


def test_jobs_that_could_never_start_are_refused(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="devices=-1: SLURM is asked for a number of GPUs"):
        engine().require([command(tmp_path, 0, processes=-1)])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="this machine has no sbatch"):
        engine().require([command(tmp_path, 0)])


@pytest.mark.slow
def test_a_command_with_a_site_submits_and_leaves_and_the_next_takes_the_jobs_over(
    tmp_path: Path, clients: Clients
) -> None:
    words = [
        "--multirun", "model=unet", "data=aerial_only", "preset=debug", "seed=1,2", "tracking=off",
        "hydra/launcher=slurm", "hydra/launcher/site=jean_zay", "hydra.launcher.account=a@v100",
        "hydra.launcher.gpus_per_job=1", "sweep.name=sw", "sweep.wait=false",
        f"paths.root={tmp_path}",
    ]  # fmt: skip
    clients.write("queue", queue("RUNNING", "PENDING"))
    for _ in range(2):
        done = answer(*words)
        assert done.status == 0, done.err
    (said,) = clients.said("sbatch")
    assert option(said, "--account") == "a@v100"
    assert option(said, "--cpus-per-task") == "10"
    assert option(said, "--array") == "0-1"
    assert {"--gres=gpu:1", "--constraint=v100-32g", "--hint=nomultithread"} <= set(said)
    commands_file = (tmp_path / "multirun/sw/slurm/1/commands.sh").read_text()
    assert "hydra.launcher" not in commands_file
    assert "hydra/launcher" not in commands_file
    assert "module purge" in Path(said[-1]).read_text()


# --- never more at once -------------------------------------------------------------------------


def test_a_later_array_has_what_earlier_jobs_leave_and_more_when_they_end(
    tmp_path: Path, clients: Clients
) -> None:
    jobs = commands(tmp_path, 12)
    slurm = engine(at_once=4, interval=0.2)
    submit(slurm, jobs[:3])
    submit(slurm, jobs[3:9])  # one is free
    submit(slurm, jobs[9:])  # none is
    first, second, third = clients.said("sbatch")
    assert option(first, "--array") == "0-2%4"
    assert option(second, "--array") == "0-5%1"
    assert option(second, "--dependency") is None
    assert option(third, "--array") == "0-2%4"
    assert option(third, "--dependency") == "afterany:101:102"

    def look(*ended: int) -> list[str]:
        said = len(clients.updates())
        states = ["COMPLETED" if n in ended else "RUNNING" for n in range(3)]
        rest = queue(*["PENDING"] * 6, number=102) + queue(*["PENDING"] * 3, number=103)
        clients.write("queue", queue(*states) + rest)
        slurm._queue = None
        slurm.states(submissions(jobs))
        return clients.updates()[said:]

    assert look() == []
    assert look(0) == ["update jobid=102 arraytaskthrottle=2"]
    assert look(0, 1, 2) == ["update jobid=102 arraytaskthrottle=4"]


def test_an_array_that_waits_begins_when_there_is_room(tmp_path: Path, clients: Clients) -> None:
    jobs = commands(tmp_path, 4)
    slurm = engine(at_once=2, interval=0.2)
    submit(slurm, jobs[:2])
    submit(slurm, jobs[2:])
    said = len(clients.updates())
    clients.write("queue", queue("RUNNING", "FAILED") + queue("PENDING", "PENDING", number=102))
    slurm.states(submissions(jobs))
    assert clients.updates()[said:] == [
        "update jobid=102 arraytaskthrottle=1",
        "update jobid=102 dependency=",
    ]


def test_adopted_jobs_count(tmp_path: Path, clients: Clients) -> None:
    jobs = commands(tmp_path, 5)
    submit(engine(at_once=3), jobs[:2])
    slurm = engine(at_once=3)
    clients.write("queue", queue("RUNNING", "PENDING"))
    for job in jobs[:2]:
        before = Submission.read(job.folder)
        assert before is not None
        slurm.adopt(job, before)
    submit(slurm, jobs[2:])
    assert option(clients.said("sbatch")[-1], "--array") == "0-2%1"


# --- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "meaning"),
    [
        ("PENDING", QUEUED), ("CONFIGURING", QUEUED), ("REQUEUED", QUEUED), ("RUNNING", ACTIVE),
        ("COMPLETING", ACTIVE), ("SUSPENDED", ACTIVE), ("COMPLETED", ENDED), ("FAILED", ENDED),
        ("TIMEOUT", ENDED), ("PREEMPTED", ENDED), ("NODE_FAIL", ENDED), ("OUT_OF_MEMORY", ENDED),
        ("CANCELLED", CANCELLED),
    ],
)  # fmt: skip
def test_slurms_states(state: str, meaning: str, tmp_path: Path, clients: Clients) -> None:
    jobs = commands(tmp_path, 1)
    slurm = engine()
    submit(slurm, jobs)
    clients.write("queue", queue(state))
    assert slurm.states(submissions(jobs)) == {"0": meaning}


def test_all_states_are_one_look_into_the_queue(tmp_path: Path, clients: Clients) -> None:
    jobs = commands(tmp_path, 50)
    slurm = engine()
    submit(slurm, jobs)
    clients.write("queue", queue(*["PENDING"] * 50))
    for key, submission in submissions(jobs).items():
        slurm.states({key: submission})
    assert len(clients.said("squeue")) == 1
    assert not clients.said("sacct")


def test_what_is_not_in_the_queue_stands_in_the_accounts(tmp_path: Path, clients: Clients) -> None:
    jobs = commands(tmp_path, 4)
    submit(engine(), jobs)
    clients.write("queue", queue("RUNNING"))
    accounts = "101_0|RUNNING\n101_1|CANCELLED by 1000\n101_2|COMPLETED\n101_3|NODE_FAIL\n"
    clients.write("accounts", accounts)
    states = engine().states(submissions(jobs))
    assert states == {"0": ACTIVE, "1": CANCELLED, "2": ENDED, "3": ENDED}
    assert len(clients.said("sacct")) == 1


def test_without_accounts_slurm_is_asked_for_the_job_itself(
    tmp_path: Path, clients: Clients
) -> None:
    jobs = commands(tmp_path, 2)
    submit(engine(), jobs)
    clients.write(
        "info",
        "JobId=101 ArrayJobId=101 ArrayTaskId=1 JobState=CANCELLED Reason=None\n"
        "JobId=102 ArrayJobId=101 ArrayTaskId=0 JobState=RUNNING Reason=None\n",
    )
    assert engine().states(submissions(jobs)) == {"0": ACTIVE, "1": CANCELLED}


def test_a_job_that_slurm_has_forgotten_runs_where_its_folder_is_held(
    tmp_path: Path, clients: Clients
) -> None:
    jobs = commands(tmp_path, 2)
    submit(engine(), jobs)
    with locked(jobs[1].folder.path):
        assert engine().states(submissions(jobs)) == {"0": ENDED, "1": ACTIVE}


def test_a_queue_that_does_not_answer_ends_no_job_and_is_told_once(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    jobs = commands(tmp_path, 2)
    slurm = engine(interval=0.2)
    submit(slurm, jobs)
    clients.write("queue", queue("RUNNING", "PENDING"))
    running = {"0": ACTIVE, "1": QUEUED}
    assert slurm.states(submissions(jobs)) == running
    monkeypatch.setattr("flair2_exp.slurm.time.sleep", lambda _: None)
    clients.program("squeue", "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1\n")
    for _ in range(2):
        slurm._queue = None
        assert slurm.states(submissions(jobs)) == running
    assert caplog.text.count("asking again, the jobs are taken to be as they were") == 1
    # Another command, that has seen none of them yet, starts none twice.
    assert engine().states(submissions(jobs)) == {"0": QUEUED, "1": QUEUED}


def test_a_job_whose_number_was_not_noted_is_found_by_its_script(
    tmp_path: Path, clients: Clients
) -> None:
    clients.program("sbatch", "kill -9 $PPID\n")
    jobs = commands(tmp_path, 2)
    pid = os.fork()
    if pid == 0:
        try:
            submit(engine(), jobs)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    script = str(submissions(jobs)["1"].details["script"])
    clients.write("queue", queue("RUNNING", "PENDING", number=55, script=script))
    assert engine().states(submissions(jobs)) == {"0": ACTIVE, "1": QUEUED}
    slurm = engine()
    slurm.adopt(jobs[1], submissions(jobs)["1"])
    assert submissions(jobs)["1"].id == "55_1"
    clients.write("queue", "")  # and where sbatch had not taken them
    assert engine().states({"0": submissions(jobs)["0"]}) == {"0": ENDED}


def test_stopping_is_one_scancel_for_all(tmp_path: Path, clients: Clients) -> None:
    jobs = commands(tmp_path, 3)
    slurm = engine()
    submit(slurm, jobs)
    slurm.stop(submissions(jobs))
    assert clients.said("scancel") == [["101_0", "101_1", "101_2"]]


def test_a_scancel_that_fails_is_said(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = commands(tmp_path, 1)
    slurm = engine()
    submit(slurm, jobs)

    def silent(*_: object, **__: object) -> str:
        raise SilentError("scancel did not answer within 30 seconds")

    monkeypatch.setattr(module, "call_patiently", silent)
    with pytest.raises(FlairError, match="scancel did not answer"):
        slurm.stop(submissions(jobs))


# --- the script of a task -----------------------------------------------------------------------

RUNNING = "JobId=101 JobState=RUNNING StartTime=2026-11-26T10:00:00 PreemptTime=None\n"
PREEMPTED = RUNNING.replace("None", "2026-11-26T10:05:00")
BEFORE = RUNNING.replace("None", "2026-11-26T09:05:00")
CANCELS = RUNNING.replace("RUNNING", "COMPLETING")


Done = subprocess.CompletedProcess[str]


def run_script(root: Path, clients: Clients, **environment: str) -> Done:
    """Run the last submission's script as its first task, with a step that is `step`."""
    (script,) = (root / "multirun" / "sw" / "slurm").glob("*/job.sh")
    own = {"SLURM_ARRAY_JOB_ID": "101", "SLURM_ARRAY_TASK_ID": "0", "PATH": clients.path()}
    return subprocess.run(
        ["bash", str(script)], env={**os.environ, **own, **environment}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip


def requeues(clients: Clients) -> int:
    return sum(words[:1] == ["requeue"] for words in clients.said("scontrol"))


def test_a_task_runs_its_command_under_its_name_and_ends_with_its_status(
    tmp_path: Path, clients: Clients
) -> None:
    odd = "name='it''s $HOME `x` \"y\"'"
    submit(engine(setup=("export HELLO=there",)), [command(tmp_path, 0, odd, "seed=1")])
    clients.write("step", "")
    clients.program("srun", 'printf "%s\\n" "$PWD" "$HELLO" "$FLAIR2_SLURM" "$@" >words; exit 3\n')
    done = run_script(tmp_path, clients, CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 3
    words = (clients.folder / "words").read_text().splitlines()
    assert words[1:3] == ["there", "101_0"]
    assert words[-4:] == ["-m", "flair2_exp", odd, "seed=1"]
    assert done.stdout.startswith("=== start 1, ")
    assert done.stdout.rstrip().endswith("SLURM job 101_0, GPU 0,1")
    assert ["update", "jobid=101_0", "jobname=sw/row0/seed=1"] in clients.said("scontrol")
    assert requeues(clients) == 0


@pytest.mark.parametrize(
    ("status", "info", "recorded", "again"),
    [
        (0, PREEMPTED, "", False),
        (1, PREEMPTED, "PREEMPTED", False),  # it was refused, or failed
        (143, PREEMPTED, "", True),
        (137, PREEMPTED, "", True),
        (138, RUNNING, "", True),  # the time limit's signal, before Python had its handlers
        (140, RUNNING, "", True),
        (137, RUNNING, "PREEMPTED", True),  # another rank was slower to end
        (143, RUNNING, "KILLED", False),  # a killed step
        (137, RUNNING, "RUNNING", False),
        (143, BEFORE, "", False),  # of an earlier start
        (143, CANCELS, "KILLED", False),
        (143, CANCELS, "PREEMPTED", False),  # cancelled while it was starting again
        (138, CANCELS, "PREEMPTED", False),
    ],
)
def test_a_task_queues_itself_again_where_slurm_takes_its_place_away(
    status: int, info: str, recorded: str, again: bool, tmp_path: Path, clients: Clients
) -> None:
    job = command(tmp_path, 0)
    submit(engine(), [job])
    job.folder.record.write_text(f'{{\n  "status": "{recorded}",\n  "x": 1\n}}')
    clients.write("info", info)
    clients.write("step", f"exit {status}")
    assert run_script(tmp_path, clients).returncode == status
    assert requeues(clients) == again


def test_a_signal_to_the_tasks_shell_does_not_end_it_before_its_run(
    tmp_path: Path, clients: Clients
) -> None:
    submit(engine(), [command(tmp_path, 0)])
    clients.write("info", PREEMPTED)
    # As SLURM does: the shell of the task and the run get the signal, the run takes its time.
    clients.write("step", "kill -TERM $(ps -o ppid= $PPID); /bin/sleep 0.5; echo saved; exit 143")
    done = run_script(tmp_path, clients)
    assert done.returncode == 143
    assert "saved" in done.stdout
    assert requeues(clients) == 1


def test_a_signal_before_the_run_queues_again_without_starting_it(
    tmp_path: Path, clients: Clients
) -> None:
    submit(engine(setup=("kill -TERM $$",)), [command(tmp_path, 0)])
    clients.write("info", PREEMPTED)
    assert run_script(tmp_path, clients).returncode == 143
    assert not clients.said("srun")
    assert requeues(clients) == 1


def test_a_run_that_never_gets_to_a_checkpoint_is_not_queued_for_ever(
    tmp_path: Path, clients: Clients
) -> None:
    job = command(tmp_path, 0)
    submit(engine(), [job])
    clients.write("info", RUNNING)
    clients.write("step", "exit 138")
    for _ in range(2):
        run_script(tmp_path, clients)
    assert requeues(clients) == 2
    clients.write("step", f"mkdir -p {job.folder.checkpoints}; touch {job.folder.last}; exit 138")
    run_script(tmp_path, clients)  # this one gets on
    clients.write("step", "exit 138")
    for _ in range(2):
        run_script(tmp_path, clients)
    assert requeues(clients) == 5
    assert "raise hydra.launcher.time" in run_script(tmp_path, clients).stdout
    assert requeues(clients) == 5


def test_what_slurm_says_of_a_task_lies_in_the_runs_folder(
    tmp_path: Path, clients: Clients
) -> None:
    job = command(tmp_path, 0)
    submit(engine(), [job])
    pattern = option(clients.said("sbatch")[0], "--output")
    assert pattern is not None
    Path(pattern.replace("%a", "0")).write_text("slurmstepd: error: out of memory\n")
    assert job.folder.output.read_text() == "slurmstepd: error: out of memory\n"
