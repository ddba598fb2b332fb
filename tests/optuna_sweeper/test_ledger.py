"""How workers settle who runs what; each here is a ledger with a storage object of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from flair2_exp.optuna_sweeper import storage as storages
from flair2_exp.optuna_sweeper import study
from flair2_exp.optuna_sweeper.compat import queued_params
from flair2_exp.optuna_sweeper.ledger import Ledger, finished
from flair2_exp.optuna_sweeper.process import Process
from flair2_exp.optuna_sweeper.study import Opening, Plan, StudyHandle
from flair2_exp.optuna_sweeper.worker import BEAT, JOB, WORKER, Heart, Watch
from tests.optuna_sweeper.toy import ELSEWHERE

PLAN = Plan(directions=("minimize",))


def connect(name: str) -> BaseStorage:
    """A storage object that shares nothing with those opened before."""
    storages._open.clear()
    return storages.open_storage(name)


def join(name: str, total: int, queue: Any = (), **options: Any) -> Ledger:
    handle = Opening(PLAN, queue).open(connect(name), "shared")
    return Ledger(handle, total, Watch(grace=60), **options)


def finish(ledger: Ledger, number: int, state: TrialState = TrialState.COMPLETE) -> None:
    values = [1.0] if state == TrialState.COMPLETE else None
    ledger.handle.storage.set_trial_state_values(ledger.handle.trial_id(number), state, values)


def dead_worker() -> dict[str, Any]:
    """The identity of a process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    process.wait()
    return {**Process.this().plain(), "pid": process.pid, "start": "1"}


def run_as(ledger: Ledger, who: dict[str, Any], **params: Any) -> FrozenTrial:
    """A trial that the worker `who` is running."""
    from optuna.distributions import FloatDistribution

    trial = create_trial(
        state=TrialState.RUNNING,
        params=params,
        distributions={name: FloatDistribution(0, 1) for name in params},
        user_attrs={WORKER: who},
    )
    handle = ledger.handle
    trial_id = handle.storage.create_new_trial(handle.study_id, trial)
    return handle.storage.get_trial(trial_id)


@pytest.fixture(params=["journal", "sqlite"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return str(tmp_path / "study.journal")
    return f"sqlite:///{tmp_path}/study.db"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["claim", "done", "fail"])), max_size=40),
)
def test_in_any_order_of_events_no_more_than_the_total_finish(
    total: int, events: list[tuple[int, str]]
) -> None:
    storage = JournalStorage(_Memory())
    handle = Opening(PLAN).open(storage, "shared")
    workers = [Ledger(handle, total, Watch(60)) for _ in range(3)]
    running: list[list[int]] = [[], [], []]
    for who, what in events:
        if what == "claim":
            claimed = workers[who].claim()
            if claimed is not None:
                running[who].append(claimed)
        elif running[who]:
            state = TrialState.COMPLETE if what == "done" else TrialState.FAIL
            finish(workers[who], running[who].pop(0), state)
        trials = handle.trials()
        busy = sum(map(len, running))
        assert finished(trials) + busy <= total
    # Whoever is left brings it to the total.
    for ids in running:
        for number in ids:
            finish(workers[0], number)
    while (last := workers[0].claim()) is not None:
        finish(workers[0], last)
    assert finished(handle.trials()) == total


class _Memory:
    """A journal in memory."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs


def claimed_at_once(ledgers: list[Ledger], misses: int) -> list[int]:
    """What these claim in threads of their own, each until it got nothing so many times."""
    barrier = threading.Barrier(len(ledgers))
    claimed: list[int] = []

    def work(ledger: Ledger) -> None:
        barrier.wait()
        missed = 0
        while missed < misses:
            number = ledger.claim()
            if number is None:
                missed += 1
            else:
                claimed.append(number)

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return claimed


def test_workers_that_race_start_exactly_the_total(name: str) -> None:
    """Threads with connections of their own hammer one study; withdrawn trials do not count."""
    ledgers = [join(name, 6) for _ in range(3)]
    claimed = claimed_at_once(ledgers, misses=5)
    assert len(claimed) == len(set(claimed)) == 6
    running = [t for t in ledgers[0].handle.trials() if t.state == TrialState.RUNNING]
    assert [t.number for t in running] == sorted(claimed)


def test_a_waiting_trial_is_taken_by_one_worker(name: str) -> None:
    queue = [{"x": i} for i in range(12)]
    ledgers = [join(name, 12, queue, may_create=False) for _ in range(3)]
    claimed = claimed_at_once(ledgers, misses=1)
    assert len(claimed) == len(set(claimed)) == 12


def test_the_worker_that_made_one_too_many_withdraws_it(tmp_path: Path) -> None:
    """Both saw a free place before either took it; the trial with the larger number yields."""
    name = str(tmp_path / "journal")
    late, early = join(name, 1), join(name, 1)
    before = late.handle.trials()
    assert early.claim() is not None
    answers = [before]
    handle = late.handle
    real = StudyHandle.trials

    def stale(self: StudyHandle) -> list[FrozenTrial]:
        return answers.pop() if answers and self is handle else real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudyHandle, "trials", stale)
        assert late.claim() is None
    made = late.handle.trials()[1]
    assert made.state == TrialState.FAIL
    assert "withdrawn" in made.user_attrs
    assert late.new_failures(late.handle.trials()) == []


def test_a_dead_workers_trial_is_tried_twice_more(name: str) -> None:
    ledger = join(name, 3)
    lost = run_as(ledger, dead_worker(), x=0.25)
    assert ledger.close_dead() == [lost.number]
    assert ledger.close_dead() == []
    closed, retry = ledger.handle.trials()
    assert closed.state == TrialState.FAIL
    assert "lost" in closed.user_attrs
    assert ledger.claim() == retry.number
    assert queued_params(retry) == {"x": 0.25}
    assert ledger.new_failures(ledger.handle.trials()) == []  # it has had one of three chances
    ledger.handle.mark(retry.number, {WORKER: dead_worker()})
    assert ledger.close_dead() == [retry.number]
    assert ledger.claim() == 2
    ledger.handle.mark(2, {WORKER: dead_worker()})
    assert ledger.close_dead() == [2]
    failures = ledger.new_failures(ledger.handle.trials())
    assert [t.number for t in failures] == [2]
    assert len(ledger.handle.trials()) == 3


def test_a_dead_workers_trial_that_had_advanced_is_tried_again_however_often(name: str) -> None:
    ledger = join(name, 3)
    run_as(ledger, dead_worker(), x=0.25)
    for number in range(5):
        ledger.handle.mark(number, {WORKER: dead_worker()})
        ledger.handle.storage.set_trial_intermediate_value(
            ledger.handle.trial(number)._trial_id, step=number, intermediate_value=0.5
        )
        assert ledger.close_dead() == [number]
        assert ledger.claim() == number + 1
    assert ledger.new_failures(ledger.handle.trials()) == []


def test_two_workers_that_find_the_same_dead_one_retry_it_once(tmp_path: Path) -> None:
    name = str(tmp_path / "journal")
    ledgers = [join(name, 5), join(name, 5)]
    lost = run_as(ledgers[0], dead_worker(), x=0.5)
    for ledger in ledgers:  # both queued it before either closed it
        ledger.handle.queue({"x": 0.5}, {study.RETRY_OF: lost.number})
    for ledger in ledgers:
        ledger.close_dead()
    claims = [ledgers[1].claim(), ledgers[0].claim()]
    retried = [
        t.number
        for t in ledgers[0].handle.trials()
        if t.state == TrialState.RUNNING and study.RETRY_OF in t.user_attrs
    ]
    assert retried == [1]
    assert None not in claims


def test_a_live_worker_is_left_alone(tmp_path: Path) -> None:
    ledger = join(str(tmp_path / "journal"), 5)
    run_as(ledger, Process.this().plain(), x=0.5)
    assert ledger.close_dead() == []


def test_a_reused_process_id_is_not_the_worker(tmp_path: Path) -> None:
    ledger = join(str(tmp_path / "journal"), 5)
    run_as(ledger, {**Process.this().plain(), "pid": os.getpid(), "start": "1"}, x=0.5)
    assert ledger.close_dead() == [0]


def test_a_job_that_outlives_its_killed_worker_is_left_to_end(tmp_path: Path) -> None:
    """As joblib's processes do; a second one would work in the same folder."""
    ledger = join(str(tmp_path / "journal"), 5)
    trial = run_as(ledger, {**Process.this().plain(), "start": "1"}, x=0.5)
    of_this = f"from {Process.__module__} import Process; process = Process.this().plain()"
    code = f"import json; {of_this}; print(json.dumps(process), flush=True); input()"
    job = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    note = json.loads(job.stdout.readline())
    ledger.handle.mark(trial.number, {JOB: note})
    assert ledger.close_dead() == []
    job.kill()
    job.communicate()
    assert ledger.close_dead() == [0]


def test_a_worker_elsewhere_is_dead_when_its_beats_stop(tmp_path: Path) -> None:
    ledger = join(str(tmp_path / "journal"), 5)
    trial = run_as(ledger, ELSEWHERE, x=0.5)
    now = [0.0]
    watch = Watch(grace=60, clock=lambda: now[0])
    deaths = []
    for second in range(0, 200, 10):
        now[0] = float(second)
        if second <= 100:
            ledger.handle.mark(trial.number, {BEAT: second})
        if watch.is_dead(ledger.handle.trial(trial.number)):
            deaths.append(second)
    assert min(deaths) == 170  # more than 60 s after the last beat


def test_a_heart_beats_while_the_jobs_run(tmp_path: Path) -> None:
    ledger = join(str(tmp_path / "journal"), 5)
    number = ledger.claim()
    assert number is not None
    storage, trial_id = ledger.handle.storage, ledger.handle.trial_id(number)
    done = threading.Event()
    with Heart(storage, grace=0.04) as heart:
        heart.trial_ids = (trial_id, 999)  # of an unknown trial nobody hears
        while storage.get_trial(trial_id).user_attrs.get(BEAT, 0) < 3:
            assert not done.wait(0.005)
    beats = storage.get_trial(trial_id).user_attrs[BEAT]
    done.wait(0.05)
    assert storage.get_trial(trial_id).user_attrs[BEAT] == beats


def half_made(name: str, maker: dict[str, Any] | None, queue: Any = ()) -> StudyHandle:
    """A study that somebody began to make."""
    handle, _ = study.create_or_load(connect(name), "shared", PLAN.directions)
    if maker is not None:
        handle.storage.set_study_user_attr(handle.study_id, study.MAKER, maker)
    study.fill(handle, queue)
    return handle


def test_a_study_whose_maker_died_before_it_was_ready_is_made_anew(name: str) -> None:
    queue = [{"x": 0}, {"x": 1}, {"x": 2}]
    half_made(name, dead_worker(), queue[:1])
    ledger = join(name, 3, queue, may_create=False)
    assert [queued_params(trial) for trial in ledger.handle.trials()] == queue


@pytest.mark.parametrize("maker", [None, ELSEWHERE])
def test_a_maker_of_whom_nothing_is_known_gets_its_time(
    maker: dict[str, Any] | None, tmp_path: Path
) -> None:
    name = str(tmp_path / "journal")
    half_made(name, maker)
    began = time.monotonic()
    Opening(PLAN, grace=0.3).open(connect(name), "shared")
    assert time.monotonic() - began >= 0.3


def test_workers_wait_for_a_maker_that_lives_and_there_is_one_parent(name: str) -> None:
    made: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> dict[str, Any]:
        begun.set()
        assert go_on.wait(30)
        made.append("first")
        return {"parent": "first"}

    def again() -> dict[str, Any]:
        made.append("second")
        return {"parent": "second"}

    handles: list[StudyHandle] = []

    def work(storage: BaseStorage, on_create: Any) -> None:
        # No time at all for makers of whom nothing is known: this one is known to live.
        handles.append(Opening(PLAN, on_create=on_create, grace=0.0).open(storage, "shared"))

    threads = [threading.Thread(target=work, args=(connect(name), slowly))]
    threads[0].start()
    assert begun.wait(30)
    threads.append(threading.Thread(target=work, args=(connect(name), again)))
    threads[1].start()
    threads[1].join(0.5)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join()
    assert made == ["first"]
    assert len({handle.study_id for handle in handles}) == 1


def test_a_study_that_could_not_be_made_is_not_left_behind(name: str) -> None:
    begun = threading.Event()

    def failing() -> dict[str, Any]:
        begun.set()
        time.sleep(0.3)  # while another one waits for it
        raise ValueError("the tracking server does not answer")

    others: list[StudyHandle] = []

    def wait(storage: BaseStorage) -> None:
        begun.wait(30)
        others.append(Opening(PLAN, [{"x": 1}]).open(storage, "shared"))

    other = threading.Thread(target=wait, args=(connect(name),))
    other.start()
    with pytest.raises(ValueError, match="does not answer"):
        Opening(PLAN, [{"x": 1}], on_create=failing).open(connect(name), "shared")
    other.join()
    assert [t.state for t in others[0].trials()] == [TrialState.WAITING]


def test_a_retry_is_withdrawn_where_the_first_attempt_ends_after_all(name: str) -> None:
    """A worker elsewhere fell silent, its trial was queued again, and then it was done."""
    ledger = join(name, 5)
    silent = run_as(ledger, ELSEWHERE, x=0.5)
    real = Ledger.fail

    def late(self: Ledger, number: int, *arguments: Any, **options: Any) -> bool:
        if number == silent.number and not self.handle.trial(number).state.is_finished():
            finish(self, number)
        return real(self, number, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "fail", late)
        ledger.give_up(silent.number, "its process died")
    fresh = ledger.claim()
    first, retry, new = ledger.handle.trials()
    assert first.state == TrialState.COMPLETE
    assert "withdrawn" in retry.user_attrs
    assert fresh == new.number


def test_the_last_to_close_a_trial_is_known_without_clocks(tmp_path: Path) -> None:
    name = str(tmp_path / "journal")
    ledgers = [join(name, 2), join(name, 2)]
    ledgers[1]._identity = ELSEWHERE
    claims = [ledger.claim() for ledger in ledgers]
    for ledger, number in zip(reversed(ledgers), reversed(claims), strict=True):
        assert number is not None
        ledger.ending(number)
        finish(ledger, number)
    assert [ledger.ended_last(ledger.handle.trials()) for ledger in ledgers] == [True, False]


def test_a_study_of_another_program_is_not_taken_over(tmp_path: Path) -> None:
    import optuna

    from flair2_exp.optuna_sweeper import SweepError

    name = str(tmp_path / "journal")
    backend = JournalStorage(JournalFileBackend(name))
    other = optuna.create_study(study_name="shared", storage=backend)
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(SweepError, match="made by another program"):
        join(name, 3)
