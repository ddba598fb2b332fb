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
from flair2_exp.optuna_sweeper import study, worker
from flair2_exp.optuna_sweeper.study import Ledger, Plan, StudyHandle, open_study
from flair2_exp.optuna_sweeper.worker import BEAT, JOB, WORKER, Heart, Watch, identity

PLAN = Plan(directions=("minimize",))


def connect(name: str) -> BaseStorage:
    """A storage object that shares nothing with those opened before."""
    storages._open.clear()
    return storages.open_storage(name)


def join(name: str, total: int, queue: Any = (), **options: Any) -> Ledger:
    handle = open_study(connect(name), name, "shared", PLAN, queue)
    return Ledger(handle, total, Watch(grace=60), **options)


def finish(ledger: Ledger, trial_id: int, state: TrialState = TrialState.COMPLETE) -> None:
    values = [1.0] if state == TrialState.COMPLETE else None
    ledger.handle.storage.set_trial_state_values(trial_id, state, values)
    ledger.done(trial_id)


def dead_worker() -> dict[str, Any]:
    """The identity of a process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    process.wait()
    return {**identity(), "pid": process.pid, "start": "1"}


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
    handle = open_study(storage, "memory", "shared", PLAN)
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
        assert workers[0].finished(trials) + busy <= total
    # Whoever is left brings it to the total.
    for ids in running:
        for trial_id in ids:
            finish(workers[0], trial_id)
    while (last := workers[0].claim()) is not None:
        finish(workers[0], last)
    assert workers[0].finished(handle.trials()) == total


class _Memory:
    """A journal in memory."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs


def test_workers_that_race_start_exactly_the_total(name: str) -> None:
    """Threads with connections of their own hammer one study; withdrawn trials do not count."""
    ledgers = [join(name, 6) for _ in range(3)]
    barrier = threading.Barrier(3)
    claimed: list[int] = []

    def work(ledger: Ledger) -> None:
        barrier.wait()
        misses = 0
        while misses < 5:
            trial_id = ledger.claim()
            if trial_id is None:
                misses += 1
            else:
                claimed.append(trial_id)

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 6
    running = [t for t in ledgers[0].handle.trials() if t.state == TrialState.RUNNING]
    assert sorted(t._trial_id for t in running) == sorted(claimed)


def test_a_waiting_trial_is_taken_by_one_worker(name: str) -> None:
    queue = [{"x": i} for i in range(12)]
    ledgers = [join(name, 12, queue, may_create=False) for _ in range(3)]
    barrier = threading.Barrier(3)
    claimed: list[int] = []

    def work(ledger: Ledger) -> None:
        barrier.wait()
        while (trial_id := ledger.claim()) is not None:
            claimed.append(trial_id)

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


def test_a_dead_workers_trial_is_tried_once_more_and_not_twice(name: str) -> None:
    ledger = join(name, 3)
    lost = run_as(ledger, dead_worker(), x=0.25)
    assert ledger.close_dead() == [lost.number]
    assert ledger.close_dead() == []
    closed, retry = ledger.handle.trials()
    assert closed.state == TrialState.FAIL
    assert "lost" in closed.user_attrs
    assert ledger.claim() == retry._trial_id
    assert retry.system_attrs["fixed_params"] == {"x": 0.25}
    assert ledger.new_failures(ledger.handle.trials()) == []  # it has had one of two chances
    ledger.done(retry._trial_id)
    ledger.handle.storage.set_trial_user_attr(retry._trial_id, WORKER, dead_worker())
    assert ledger.close_dead() == [retry.number]
    failures = ledger.new_failures(ledger.handle.trials())
    assert [t.number for t in failures] == [retry.number]
    assert len(ledger.handle.trials()) == 2


def test_two_workers_that_find_the_same_dead_one_retry_it_once(tmp_path: Path) -> None:
    name = str(tmp_path / "journal")
    ledgers = [join(name, 5), join(name, 5)]
    lost = run_as(ledgers[0], dead_worker(), x=0.5)
    for ledger in ledgers:  # both queued it before either closed it
        study._enqueue(ledger.handle, {"x": 0.5}, {study.RETRY_OF: lost.number})
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
    run_as(ledger, identity(), x=0.5)
    assert ledger.close_dead() == []


def test_a_reused_process_id_is_not_the_worker(tmp_path: Path) -> None:
    ledger = join(str(tmp_path / "journal"), 5)
    run_as(ledger, {**identity(), "pid": os.getpid(), "start": "1"}, x=0.5)
    assert ledger.close_dead() == [0]


def test_a_job_that_outlives_its_killed_worker_is_left_to_end(tmp_path: Path) -> None:
    """As joblib's processes do; a second one would work in the same folder."""
    ledger = join(str(tmp_path / "journal"), 5)
    trial = run_as(ledger, {**identity(), "start": "1"}, x=0.5)
    module = worker.__name__
    code = f"import json, {module} as w; print(json.dumps(w.identity()), flush=True); input()"
    job = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    note = json.loads(job.stdout.readline())
    ledger.handle.storage.set_trial_user_attr(trial._trial_id, JOB, note)
    assert ledger.close_dead() == []
    job.kill()
    job.communicate()
    assert ledger.close_dead() == [0]


def test_a_worker_elsewhere_is_dead_when_its_beats_stop(tmp_path: Path) -> None:
    ledger = join(str(tmp_path / "journal"), 5)
    trial = run_as(ledger, {"machine": "elsewhere", "pid": 1, "start": "1"}, x=0.5)
    storage, now = ledger.handle.storage, [0.0]
    watch = Watch(grace=60, clock=lambda: now[0])
    deaths = []
    for second in range(0, 200, 10):
        now[0] = float(second)
        if second <= 100:
            storage.set_trial_user_attr(trial._trial_id, BEAT, second)
        if watch.is_dead(storage.get_trial(trial._trial_id)):
            deaths.append(second)
    assert min(deaths) == 170  # more than 60 s after the last beat


def test_a_heart_beats_while_the_jobs_run(tmp_path: Path) -> None:
    ledger = join(str(tmp_path / "journal"), 5)
    trial_id = ledger.claim()
    assert trial_id is not None
    storage = ledger.handle.storage
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
    handle, _ = study._create_or_load(connect(name), "shared", PLAN)
    if maker is not None:
        handle.storage.set_study_user_attr(handle.study_id, study.MAKER, maker)
    study.fill(handle, queue)
    return handle


def test_a_study_whose_maker_died_before_it_was_ready_is_made_anew(name: str) -> None:
    queue = [{"x": 0}, {"x": 1}, {"x": 2}]
    half_made(name, dead_worker(), queue[:1])
    ledger = join(name, 3, queue, may_create=False)
    fixed = [t.system_attrs["fixed_params"] for t in ledger.handle.trials()]
    assert fixed == queue


@pytest.mark.parametrize("maker", [None, {"machine": "elsewhere", "pid": 1, "start": "1"}])
def test_a_maker_of_whom_nothing_is_known_gets_its_time(
    maker: dict[str, Any] | None, tmp_path: Path
) -> None:
    name = str(tmp_path / "journal")
    half_made(name, maker)
    began = time.monotonic()
    open_study(connect(name), name, "shared", PLAN, grace=0.3)
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
        options: dict[str, Any] = {"on_create": on_create, "grace": 0.0}
        handles.append(open_study(storage, name, "shared", PLAN, **options))

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
        others.append(open_study(storage, name, "shared", PLAN, [{"x": 1}]))

    other = threading.Thread(target=wait, args=(connect(name),))
    other.start()
    with pytest.raises(ValueError, match="does not answer"):
        open_study(connect(name), name, "shared", PLAN, [{"x": 1}], on_create=failing)
    other.join()
    assert [t.state for t in others[0].trials()] == [TrialState.WAITING]


def test_a_retry_is_withdrawn_where_the_first_attempt_ends_after_all(name: str) -> None:
    """A worker elsewhere fell silent, its trial was queued again, and then it was done."""
    ledger = join(name, 5)
    silent = run_as(ledger, {"machine": "elsewhere", "pid": 1, "start": "1"}, x=0.5)
    real = Ledger.fail

    def late(self: Ledger, trial_id: int, *arguments: Any, **options: Any) -> bool:
        storage = self.handle.storage
        if trial_id == silent._trial_id and not storage.get_trial(trial_id).state.is_finished():
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
        return real(self, trial_id, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "fail", late)
        ledger.give_up(silent._trial_id, "its process died")
    fresh = ledger.claim()
    first, retry, new = ledger.handle.trials()
    assert first.state == TrialState.COMPLETE
    assert "withdrawn" in retry.user_attrs
    assert fresh == new._trial_id


def test_the_last_to_close_a_trial_is_known_without_clocks(tmp_path: Path) -> None:
    name = str(tmp_path / "journal")
    ledgers = [join(name, 2), join(name, 2)]
    ledgers[1]._identity = {"machine": "elsewhere", "pid": 1, "start": "1"}
    claims = [ledger.claim() for ledger in ledgers]
    for ledger, trial_id in zip(reversed(ledgers), reversed(claims), strict=True):
        assert trial_id is not None
        ledger.ending(trial_id)
        finish(ledger, trial_id)
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
