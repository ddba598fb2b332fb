"""Several jobs at a time on one machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flair2_exp.config.engines import SlotsConfig
from flair2_exp.engines.engine import ACTIVE, DONE, ENDED, FAILURE, START, Ending
from flair2_exp.engines.job import Submission
from flair2_exp.engines.pool import Pool
from flair2_exp.engines.slots import Resources, Share, Slots
from flair2_exp.errors import ConfigError
from tests.engines.scripts import Script, script, status_of, until, written

GPUS = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


def slots(gpus: tuple[str, ...] = (), **options: object) -> Slots:
    """An engine that starts at once, on pretended GPUs."""
    engine = Slots(SlotsConfig(**{"stagger": 0.0, **options}))  # type: ignore[arg-type]
    cores = list(range(8))
    engine.resources = Resources(gpus, cores, engine._options.slots, engine._options.cores_per_job)
    return engine


def drain(pool: Pool) -> dict[int, Ending]:
    """Run a pool to its end."""
    endings: dict[int, Ending] = {}

    def ended() -> bool:
        endings.update({command.number: ending for command, ending in pool.poll()})
        return not len(pool)

    until(ended)
    return endings


def run(engine: Slots, *jobs: Script, retries: int = 2) -> dict[int, Ending]:
    pool = Pool(engine, retries)
    for job in jobs:
        pool.add(job)
    return drain(pool)


# --- sharing out --------------------------------------------------------------------------------


@given(
    wanted=st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0, 2.0, 4.0]), max_size=30),
    ends=st.lists(st.integers(0, 20), max_size=30),
    limit=st.none() | st.integers(1, 6),
)
def test_no_gpu_is_ever_given_more_than_once(
    wanted: list[float], ends: list[int], limit: int | None
) -> None:
    resources, taken = Resources(GPUS, range(8), limit), []
    for place, gpus in enumerate(wanted):
        share = resources.take(gpus)
        if share is not None:
            taken.append(share)
        use: Counter[str] = Counter()
        for each in taken:
            assert len(set(each.gpus)) == len(each.gpus)
            for gpu in each.gpus:
                use[gpu] += each.part  # type: ignore[assignment]
        assert all(part <= 1.000001 for part in use.values())
        assert limit is None or len(taken) <= limit
        if place < len(ends) and taken:
            resources.give_back(taken.pop(ends[place] % len(taken)))


@pytest.mark.parametrize(
    ("gpus", "at_once"), [(1, 4), (2, 2), (4, 1), (3, 1), (0.5, 8), (1 / 3, 12)]
)
def test_as_many_jobs_as_the_gpus_hold(gpus: float, at_once: int) -> None:
    resources = Resources(GPUS, range(16))
    assert resources.at_once(gpus) == at_once
    shares = [resources.take(gpus) for _ in range(at_once + 1)]
    assert all(shares[:-1])
    assert shares[-1] is None


def test_cores_are_shared_out_without_overlap() -> None:
    resources = Resources(GPUS, range(8))
    shares = [resources.take(1.0) for _ in range(4)]
    cores = [core for share in shares if share is not None for core in share.cores]
    assert sorted(cores) == list(range(8))


def test_without_gpus_two_cores_make_a_slot() -> None:
    assert Resources((), range(8)).at_once(0.0) == 4
    assert Resources((), range(1)).at_once(1.0) == 1
    assert Resources((), range(8), slots=3).at_once(0.0) == 3


def test_jobs_that_no_machine_could_hold_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wants 5 GPUs, and this command sees 4"):
        slots(GPUS).require([script(tmp_path, 0, gpus=5)])
    with pytest.raises(ConfigError, match="a whole number, or a part of 1"):
        SlotsConfig(gpus_per_job=1.5)


# --- running ------------------------------------------------------------------------------------


def test_each_job_has_a_gpu_of_its_own_and_the_next_begins_when_one_falls_free(
    tmp_path: Path,
) -> None:
    code = """
leave("gpu", os.environ["CUDA_VISIBLE_DEVICES"])
leave("cores", str(len(os.sched_getaffinity(0))))
wait_for(f"go{FOLDER.name[3:]}")
finish()
"""
    jobs = [script(tmp_path, number, code, gpus=1) for number in range(6)]
    pool = Pool(slots(GPUS), 0)
    for job in jobs:
        pool.add(job)
    pool.start()
    until(lambda: all(written(job.folder, "gpu") for job in jobs[:4]))
    assert sorted(written(job.folder, "gpu") for job in jobs[:4]) == sorted(GPUS)
    assert pool.poll() == []
    assert not jobs[4].folder.path.exists()

    (tmp_path / "go2").touch()
    until(lambda: pool.poll())
    until(lambda: written(jobs[4].folder, "gpu"))
    assert written(jobs[4].folder, "gpu") == written(jobs[2].folder, "gpu")
    for number in range(6):
        (tmp_path / f"go{number}").touch()
    assert {ending.cause for ending in drain(pool).values()} == {DONE}


def test_two_jobs_share_a_gpu_on_request(tmp_path: Path) -> None:
    code = 'leave("gpu", os.environ["CUDA_VISIBLE_DEVICES"]); wait_for("go"); finish()'
    jobs = [script(tmp_path, number, code, gpus=1) for number in range(4)]
    pool = Pool(slots(GPUS[:2], gpus_per_job=0.5), 0)
    for job in jobs:
        pool.add(job)
    pool.start()
    until(lambda: all(written(job.folder, "gpu") for job in jobs))
    used = Counter(written(job.folder, "gpu") for job in jobs)
    assert used == {"GPU-a": 2, "GPU-b": 2}
    (tmp_path / "go").touch()
    drain(pool)


def test_what_a_job_prints_lies_in_its_folder_one_start_behind_the_other(tmp_path: Path) -> None:
    code = """
print("out of start", starts())
print("err", file=sys.stderr)
os.kill(os.getpid(), signal.SIGKILL) if starts() == 1 else finish()
"""
    job = script(tmp_path, 0, code)
    assert run(slots(), job)[0].cause == DONE
    lines = job.folder.output.read_text().splitlines()
    assert [line[:11] for line in lines if line.startswith("===")] == ["=== start 1", "=== start 2"]
    assert lines.count("err") == 2


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_a_job_that_is_killed_is_tried_again_as_often_as_asked(tmp_path: Path, end: str) -> None:
    job = script(tmp_path, 0, f'record("RUNNING"); {end}')
    ending = run(slots(), job, retries=2)[0]
    assert (ending.cause, "without a word" in ending.reason) == ("killed", True)
    assert job.folder.output.read_text().count("=== start") == 3


def test_a_job_that_gets_on_between_two_kills_is_tried_however_often(tmp_path: Path) -> None:
    code = """
record("RUNNING"); advance()
finish() if starts() == 6 else os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(slots(), script(tmp_path, 0, code), retries=1)[0].cause == DONE


def test_a_failure_of_the_code_is_final_and_names_its_reason(tmp_path: Path) -> None:
    job = script(tmp_path, 0, 'record("FAILED", "ValueError: no"); sys.exit(1)')
    assert run(slots(), job)[0] == Ending(FAILURE, "ValueError: no")
    assert job.folder.output.read_text().count("=== start") == 1


def test_a_refused_run_keeps_its_reason_and_is_not_tried_twice(tmp_path: Path) -> None:
    job = script(tmp_path, 0, 'print("flair2-exp: no such file", file=sys.stderr); sys.exit(1)')
    assert run(slots(), job)[0] == Ending(FAILURE, "no such file")
    assert job.folder.output.read_text().count("=== start") == 1


def test_a_full_gpu_is_tried_again_with_advice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = """
if starts() == 1:
    record("FAILED", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    sys.exit(1)
finish()
"""
    with caplog.at_level(logging.WARNING):
        assert run(slots(), script(tmp_path, 0, code))[0].cause == DONE
    assert "data.batch_size" in caplog.text


def test_one_jobs_end_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    killed = script(tmp_path, 0, 'record("RUNNING"); os.kill(os.getpid(), signal.SIGKILL)')
    works = script(tmp_path, 1, 'wait_for("go"); finish()')
    pool = Pool(slots(slots=2), 0)
    pool.add(killed)
    pool.add(works)
    (command, ending), *_ = _first(pool)
    assert (command.number, ending.cause) == (0, "killed")
    (tmp_path / "go").touch()
    assert drain(pool)[1].cause == DONE


def _first(pool: Pool) -> list[tuple]:
    ended: list[tuple] = []
    until(lambda: ended.extend(pool.poll()) or ended)
    return ended


def test_a_killed_jobs_children_do_not_outlive_it(tmp_path: Path) -> None:
    code = """
import subprocess
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
leave("child", str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    job = script(tmp_path, 0, code)
    run(slots(), job, retries=0)
    child = int(written(job.folder, "child"))
    until(lambda: not _lives(child))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


TIDY = """
def end(number, frame):
    advance(); record("KILLED"); sys.exit(143)
signal.signal(signal.SIGTERM, end)
record("RUNNING"); leave("pid", str(os.getpid()))
wait_for("go"); finish()
"""


def test_an_interrupted_sweep_stops_its_jobs_with_checkpoints(tmp_path: Path) -> None:
    jobs = [script(tmp_path, number, TIDY) for number in range(3)]
    pool = Pool(slots(slots=2), 2)
    for job in jobs:
        pool.add(job)

    def sweep() -> None:
        with pool.until_ended(lambda text: None):
            pool.start()
            until(lambda: all(written(job.folder, "pid") for job in jobs[:2]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep()
    assert [status_of(job.folder) for job in jobs] == ["KILLED", "KILLED", ""]
    assert all(job.folder.last.exists() for job in jobs[:2])


def test_a_job_outlives_a_killed_sweep_and_the_next_one_takes_it_over(tmp_path: Path) -> None:
    job, other = script(tmp_path, 0, TIDY), script(tmp_path, 1)
    first = Pool(slots(slots=1), 2)
    first.add(job)
    first.start()
    until(lambda: written(job.folder, "pid"))
    del first  # its process was killed

    pool = Pool(slots(slots=1), 2)
    assert pool.add(job)
    assert not pool.add(other)
    assert pool.poll() == []
    assert not other.folder.path.exists()  # the only slot is taken
    (tmp_path / "go").touch()
    assert {number: ending.cause for number, ending in drain(pool).items()} == {0: DONE, 1: DONE}
    assert job.folder.output.read_text().count("=== start") == 1


def test_a_sweep_that_is_ended_while_it_takes_jobs_over_stops_them_all(tmp_path: Path) -> None:
    jobs = [script(tmp_path, number, TIDY) for number in range(2)]
    first = Pool(slots(slots=2), 2)
    for job in jobs:
        first.add(job)
    first.start()
    until(lambda: all(written(job.folder, "pid") for job in jobs))
    del first  # its process was killed
    pool = Pool(slots(slots=2), 2)

    def sweep() -> None:
        with pool.until_ended(lambda text: None, jobs):
            pool.add(jobs[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep()
    assert [status_of(job.folder) for job in jobs] == ["KILLED", "KILLED"]


def test_a_process_number_that_another_process_has_by_now_is_not_taken_for_the_job(
    tmp_path: Path,
) -> None:
    job = script(tmp_path, 0)
    run(slots(), job)
    submission = Submission.read(job.folder)
    assert submission is not None
    assert slots().states({"a": submission}) == {"a": ENDED}
    submission.id = str(os.getpid())
    submission.details["process"]["pid"] = os.getpid()
    assert slots().states({"a": submission}) == {"a": ENDED}
    slots().stop({"a": submission})  # and gets no signal


def test_a_stop_is_one_signal_to_the_jobs_own_process(tmp_path: Path) -> None:
    job = script(tmp_path, 0, TIDY)
    engine = slots()
    engine.start([job], [1])
    until(lambda: written(job.folder, "pid"))
    submission = Submission.read(job.folder)
    assert submission is not None
    assert engine.states({"a": submission}) == {"a": ACTIVE}
    slots().stop({"a": submission})  # from any process
    until(lambda: engine.states({"a": submission}) == {"a": ENDED})
    assert status_of(job.folder) == "KILLED"


def test_starts_are_staggered(tmp_path: Path) -> None:
    engine = slots(slots=2, stagger=3600.0)
    jobs = [script(tmp_path, number, 'wait_for("go"); finish()') for number in range(2)]
    assert engine.start(jobs, [1, 1]) == 1
    assert engine.start(jobs[1:], [1]) == 0
    (tmp_path / "go").touch()
    until(lambda: status_of(jobs[0].folder) == "FINISHED")


def test_a_share_is_given_back_where_a_job_cannot_be_started(tmp_path: Path) -> None:
    engine = slots(slots=1)
    job = script(tmp_path, 0)
    (tmp_path / "job0").write_text("a file in the folder's place")
    with pytest.raises(FileExistsError):
        engine.start([job], [1])
    assert isinstance(engine.resources.take(0.0), Share)


def test_jobs_are_not_in_the_sweeps_group_which_ctrl_c_in_a_terminal_signals(
    tmp_path: Path,
) -> None:
    job = script(tmp_path, 0, 'leave("group", str(os.getpgid(0))); wait_for("go"); finish()')
    engine = slots()
    engine.start([job], [1])
    until(lambda: written(job.folder, "group"))
    assert int(written(job.folder, "group")) != os.getpgid(0)
    (tmp_path / "go").touch()
    until(lambda: status_of(job.folder) == "FINISHED")


KILLED_WHILE_IT_STARTS = """
import os, signal, sys
from pathlib import Path
from flair2_exp.engines import job
from tests.engines.scripts import script
from tests.engines.test_slots import slots

class Killed(job.Submission):
    def write(self, folder):
        {before}
        os.kill(os.getpid(), signal.SIGKILL)

import flair2_exp.engines.slots as engine
engine.Submission = Killed
slots().start([script(Path(sys.argv[1]), 0, 'leave("began", "yes"); finish()')], [1])
"""


@pytest.mark.parametrize("before", ["pass", "super().write(folder)"], ids=["unknown", "noted"])
def test_a_job_whose_sweep_is_killed_while_it_starts_it_never_begins(
    tmp_path: Path, before: str
) -> None:
    """Else the next sweep would start it a second time beside the first."""
    code = KILLED_WHILE_IT_STARTS.format(before=before)
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    job = script(tmp_path, 0, 'leave("began", "yes"); finish()')
    submission = Submission.read(job.folder)
    assert (submission is not None) == (before != "pass")
    if submission is not None:
        until(lambda: slots().states({"a": submission}) == {"a": ENDED})
    assert written(job.folder, "began") == ""
    assert START not in job.folder.output.read_text()
    pool = Pool(slots(), 1)
    pool.add(job, lost=True)
    assert drain(pool)[0].cause == DONE
    assert written(job.folder, "began") == "yes"
