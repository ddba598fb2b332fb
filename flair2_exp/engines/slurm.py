"""Jobs in SLURM's queue: an array of them for each submission.

A job is a command, so sbatch is called directly: nothing is pickled, and what a task runs can be
read, and submitted again by hand, in the sweep's folder (`slurm/1/job.sh` and `commands.sh`). The
environment is the submitting command's, as sbatch hands it on (`--export=ALL`), without what SLURM
itself had set there; a word with credentials travels in it too, and stands in no file of ours.

A task ends with the run's exit status. It queues itself again (`scontrol requeue`) where SLURM
takes its place away: at the time limit, announced `grace` seconds before (SIGUSR1), and
where a job of more weight preempts it (`flair2_exp.slurm.goes_on`).
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from flair2_exp.config.engines import SlurmConfig
from flair2_exp.engines.engine import ACTIVE, CANCELLED, ENDED, QUEUED, START, Engine
from flair2_exp.engines.job import JobCommand, Submission
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.files import write_text
from flair2_exp.lifecycle.folder import SLURM_FOLDER, RunFolder
from flair2_exp.locking import holder_of
from flair2_exp.signals import PREEMPTED
from flair2_exp.slurm import JOB, RefusedError, SilentError, call, call_patiently, fields_of
from flair2_exp.tracking.scrub import scrub

log = logging.getLogger(__name__)

T = TypeVar("T")

_QUEUED: Final = frozenset((
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
))  # fmt: skip
_ACTIVE: Final = frozenset((
    "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "POWER_UP_NODE",
))  # fmt: skip
_MOST_NAMED: Final = 64
"""Tasks that are renamed while they wait: each becomes an entry of its own in SLURM's queue. Those
of larger arrays get their names when they start."""
_WAIT: Final = 600
"""Seconds after the first rank's end until SLURM ends the others: rank 0 draws, tests, delivers."""
_IDLE: Final = 3
"""Starts in a row that may end at the time limit without a checkpoint."""
_MOST_IDS: Final = 200  # of one command line


class SubmissionError(FlairError):
    """sbatch did not take the jobs."""


class UnknownSubmissionError(FlairError):
    """Whether sbatch has taken the jobs is not known: the folders keep what finds them again."""


@dataclass
class _Array:
    """What is in the queue of one submission.

    Attributes:
        limit: Tasks at a time; None: unknown, as of another command's.
        live: Those that are queued or running.
        waits: It begins when those before have ended.
    """

    limit: int | None
    live: set[str] = field(default_factory=set)
    waits: bool = False

    def most(self) -> int:
        """Return how many can run at the same time."""
        return len(self.live) if self.limit is None else min(self.limit, len(self.live))


class Slurm(Engine):
    """Jobs in the queue of a SLURM cluster."""

    name: ClassVar[str] = "slurm"
    outlives = True

    def __init__(self, options: SlurmConfig) -> None:
        self._options = options
        self.interval = options.interval
        self._arrays: dict[str, _Array] = {}
        self._known: dict[str, str] = {}  # last answers, by job id
        self._queue: dict[str, tuple[str, str]] | None = None
        self._asked = -float("inf")
        self._accounting = True
        self._told = ""
        self._largest: int | None = None

    def require(self, commands: Sequence[JobCommand]) -> None:
        """Refuse to submit where there is no SLURM, and jobs without a number of GPUs."""
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "hydra/launcher=slurm: this machine has no sbatch: start the command where SLURM "
                "is (a login node), or use hydra/launcher=slots."
            )
        for command in commands:
            if command.processes == -1:
                raise ConfigError(
                    "trainer.devices=-1: SLURM is asked for a number of GPUs: use "
                    "trainer.devices=4, say, for as many on each machine."
                )

    def start(self, commands: Sequence[JobCommand], attempts: Sequence[int]) -> int:
        """Submit jobs, neighbours of the same needs in one array."""
        started = 0
        for wanted, group in itertools.groupby(
            zip(commands, attempts, strict=True), lambda pair: self._needs(pair[0])
        ):
            for chunk in _chunks(list(group), self._most_tasks()):
                try:
                    self._submit(wanted, chunk)
                except SubmissionError as error:
                    # As many as an account may queue: the others follow when these have ended.
                    if not any(array.live for array in self._arrays.values()):
                        raise
                    self._tell(f"{len(commands) - started} jobs wait here: {error}")
                    return started
                started += len(chunk)
        return started

    def _needs(self, command: JobCommand) -> tuple[str, ...]:
        """Return the options of sbatch that say what a job runs on."""
        options = self._options
        processes = max(1, command.processes)
        shared = options.cores_per_job and max(1, options.cores_per_job // processes)
        cores = options.cores_per_process or shared or command.workers + 1
        gpus = options.gpus_per_job if options.gpus_per_job is not None else command.gpus
        asked = (options.gpus or "--gres=gpu:{n}").replace("{n}", str(int(gpus)))
        return (
            f"--nodes={command.nodes}",
            f"--ntasks-per-node={processes}",
            f"--cpus-per-task={cores}",
            *((asked,) if gpus else ()),
            f"--chdir={command.cwd}",
        )

    def _most_tasks(self) -> int:
        """Return how many tasks an array may have here."""
        if self._largest is None:
            self._largest = 1000
            with suppress(RefusedError, SilentError):
                for line in call_patiently(["scontrol", "show", "config"]).splitlines():
                    name, _, value = line.partition("=")
                    if name.strip() == "MaxArraySize" and value.strip().isdecimal():
                        self._largest = max(1, int(value) - 1)
        return self._largest

    def _submit(self, needs: tuple[str, ...], jobs: Sequence[tuple[JobCommand, int]]) -> None:
        """Submit one array; where that fails, leave all as it was."""
        commands = [command for command, _ in jobs]
        root = commands[0].root or commands[0].folder.path.parent
        sweep = commands[0].title.partition("/")[0] or "flair2_exp"
        folder = _new_folder(root / SLURM_FOLDER)
        script = folder / "job.sh"
        array = _Array(self._options.at_once)
        undo: list[tuple[RunFolder, str | None]] = []
        environment = _environment()
        try:
            lines = []
            for place, (command, attempt) in enumerate(jobs):
                undo.append(_foothold(command.folder))
                # SLURM's own words on a task (no memory, time limit) go to the run's output, too.
                (folder / f"{place}.log").symlink_to(command.folder.output)
                lines += _task(place, command, attempt, environment)
            write_text(folder / "commands.sh", "\n".join(_case(lines)) + "\n")
            words = self._sbatch(folder, sweep, needs, len(jobs), array)
            write_text(script, self._script(words, folder, needs))
            submissions = [
                self._submission(command, attempt, script, place)
                for place, (command, attempt) in enumerate(jobs)
            ]
            # Before: whoever is killed before the number is known finds the job by its script.
            for command, submission in zip(commands, submissions, strict=True):
                submission.write(command.folder)
            number = self._number([*words, str(script)], script, environment)
        except (SubmissionError, OSError):  # else, as after Ctrl-C, sbatch may have taken them
            for run_folder, before in undo:
                _take_back(run_folder, before)
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # an earlier submission's is in it
                folder.parent.rmdir()
            raise
        self._arrays[number] = array
        self._queue = None
        names = []
        for place, (command, submission) in enumerate(zip(commands, submissions, strict=True)):
            submission.id = f"{number}_{place}"
            submission.write(command.folder)
            array.live.add(submission.id)
            self._known[submission.id] = QUEUED
            names.append(f"update jobid={submission.id} jobname={_one_word(command.title)}")
        if len(names) <= _MOST_NAMED:
            with suppress(RefusedError, SilentError):  # one has started, or ended: it has its name
                call(["scontrol"], lines=names)
        what = "1 job is" if len(jobs) == 1 else f"{len(jobs)} jobs are"
        log.info("%s queued as %s (%s)", what, number, folder)

    def _submission(
        self, command: JobCommand, attempt: int, script: Path, place: int
    ) -> Submission:
        details = {"script": str(script), "task": place, "folder": str(command.folder)}
        words, host = list(command.words), socket.gethostname()
        return Submission(self.name, "", command.title, words, host, details, attempt=attempt)

    def _sbatch(
        self, folder: Path, sweep: str, needs: Iterable[str], tasks: int, array: _Array
    ) -> list[str]:
        """Return the command that submits, without its script; note in the array how it begins."""
        options = self._options
        room, before = self._room(), [each for each, a in self._arrays.items() if a.live]
        if options.at_once is not None and before:
            array.waits = room < 1
            array.limit = options.at_once if array.waits else room
        limit = "" if array.limit is None else f"%{array.limit}"
        named = {
            "account": options.account,
            "partition": options.partition,
            "qos": options.qos,
            "constraint": options.constraint,
            "mem": options.memory,
            "time": options.time,
        }
        return [
            "sbatch",
            "--parsable",
            f"--array=0-{tasks - 1}{limit}",
            f"--job-name={sweep}",
            f"--output={str(folder).replace('%', '%%')}/%a.log",
            "--open-mode=append",
            "--export=ALL",
            "--requeue",
            f"--signal=USR1@{options.grace}",
            *needs,
            *(f"--{name}={value}" for name, value in named.items() if value),
            *([f"--dependency=afterany:{':'.join(before)}"] if array.waits else []),
            *options.sbatch,
        ]

    def _script(self, words: Sequence[str], folder: Path, needs: Iterable[str]) -> str:
        per_task = next(each for each in needs if each.startswith("--cpus-per-task"))
        cwd = next(each for each in needs if each.startswith("--chdir=")).partition("=")[2]
        return _SCRIPT.format(
            submitted=shlex.join([*words, str(folder / "job.sh")]),
            job=JOB,
            commands=shlex.quote(str(folder / "commands.sh")),
            start=START,
            cwd=shlex.quote(cwd),
            setup="\n".join(self._options.setup),
            srun=shlex.join(["srun", "--kill-on-bad-exit=0", f"--wait={_WAIT}", per_task]),
            preempted=PREEMPTED,
            folder=shlex.quote(str(folder)),
            idle=_IDLE,
        )

    def _number(self, words: list[str], script: Path, environment: Mapping[str, str]) -> str:
        """Submit; return the number of the array."""
        try:
            printed = call(words, seconds=60.0, environment=environment)
            return printed.strip().splitlines()[-1].partition(";")[0]
        except RefusedError as error:
            raise SubmissionError(f"sbatch refused the jobs: {error}") from None
        except SilentError as error:
            log.warning("%s; looking whether it has submitted the jobs …", error)
        for pause in (5, 20, 60):
            time.sleep(pause)
            self._queue = None
            queue = self._look()
            if queue is None:
                continue
            found = {
                key.partition("_")[0] for key, (_, path) in queue.items() if path == str(script)
            }
            if found:
                return found.pop()
            raise SubmissionError(
                "sbatch did not answer, and no such jobs are in the queue: give the command again."
            )
        raise UnknownSubmissionError(
            "SLURM does not answer, so whether the jobs are queued is not known. Give the command "
            "again when squeue answers: it finds them."
        )

    def capacity(self, command: JobCommand) -> int | None:
        """Return how many jobs run at the same time, as far as the options say."""
        return self._options.at_once

    def adopt(self, command: JobCommand, job: Submission) -> None:
        """Count a job of an earlier command's among those at a time."""
        self._resolve(job, command.folder)
        if job.id:
            array = self._arrays.setdefault(job.id.partition("_")[0], _Array(None))
            array.live.add(job.id)

    def states(self, jobs: Mapping[str, Submission]) -> dict[str, str]:
        """Return where jobs are, by one look into the queue; what is not in it is looked up."""
        queue = self._look()
        found = {}
        for key, job in jobs.items():
            self._resolve(job)
            found[key] = self._state(job, queue)
            if found[key] == ENDED and job.cancelled:
                found[key] = CANCELLED
            if job.id and found[key] in (ENDED, CANCELLED):
                self._let_go(job.id)
        self._use_room()
        return found

    def _state(self, job: Submission, queue: Mapping[str, tuple[str, str]] | None) -> str:
        if not job.id:
            # Never submitted, as far as the queue shows.
            return QUEUED if queue is None else _by_folder(job)
        if queue is not None and job.id in queue:
            self._known[job.id] = _meaning(queue[job.id][0])
        elif queue is not None and self._known.get(job.id) not in (ENDED, CANCELLED):
            state = self._past(job.id)
            if state is None:
                return _by_folder(job)
            self._known[job.id] = state
        return self._known.get(job.id, QUEUED)  # no answer yet: nothing is started twice

    def _look(self) -> dict[str, tuple[str, str]] | None:
        """Return this user's jobs: SLURM's state and the script by id; None without an answer.

        A look serves for two seconds: a sweep asks after each of its jobs when it begins.
        """
        if self._queue is not None and time.monotonic() - self._asked < min(2.0, self.interval):
            return self._queue
        words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}"]
        try:
            answer = call_patiently([*words, "--format=%F|%K|%T|%o"], tries=2)
        except (RefusedError, SilentError) as error:
            self._tell(f"squeue: {error}; asking again, the jobs are taken to be as they were")
            self._queue, self.silent = None, True
            return None
        self._told, self.silent = "", False
        self._queue, self._asked = {}, time.monotonic()
        for line in answer.splitlines():
            number, task, state, script = (line.split("|", 3) + [""] * 3)[:4]
            self._queue[f"{number}_{task}"] = (state, script)
        return self._queue

    def _past(self, id_: str) -> str | None:
        """Return the state of a job that is not in the queue; None where SLURM has forgotten it."""
        number = id_.partition("_")[0]
        states = self._accounts(number)
        if id_ not in states or _meaning(states[id_]) in (QUEUED, ACTIVE):
            try:  # of another user's, or where there are no accounts
                answer = call_patiently(["scontrol", "-o", "show", "job", number], tries=2)
            except SilentError:
                return self._known.get(id_, QUEUED)
            except RefusedError:
                answer = ""
            states = {
                f"{each.get('ArrayJobId', number)}_{each.get('ArrayTaskId', '')}": each["JobState"]
                for each in map(fields_of, answer.splitlines())
                if "JobState" in each
            }
        for other, state in states.items():
            self._known.setdefault(other, _meaning(state))
        return _meaning(states[id_]) if id_ in states else None

    def _accounts(self, number: str) -> dict[str, str]:
        """Return what the accounts say of an array's tasks; empty where there are none."""
        if not self._accounting:
            return {}
        words = ["sacct", "-X", "--noheader", "--parsable2", f"--jobs={number}"]
        try:
            answer = call([*words, "--format=JobID,State"])
        except RefusedError:
            self._accounting = False
            return {}
        except SilentError:
            return {}
        return dict(line.split("|", 1) for line in answer.splitlines() if "|" in line)

    def _resolve(self, job: Submission, folder: RunFolder | None = None) -> None:
        """Give a job its id that was submitted by a command which was killed in that moment."""
        if job.id or (queue := self._look()) is None:
            return
        script, place = job.details.get("script"), job.details.get("task")
        for id_, (_, path) in queue.items():
            if path == script and id_.endswith(f"_{place}"):
                job.id = id_
                if folder is not None:
                    job.write(folder)
                return

    def _let_go(self, id_: str) -> None:
        number = id_.partition("_")[0]
        if number in self._arrays:
            self._arrays[number].live.discard(id_)
            if not self._arrays[number].live:
                del self._arrays[number]

    def _room(self) -> int:
        """Return how many more jobs may run than those that can run now."""
        most = self._options.at_once or 0
        return most - sum(array.most() for array in self._arrays.values() if not array.waits)

    def _use_room(self) -> None:
        """Let later submissions have what earlier ones no longer need."""
        if self._options.at_once is None:
            return
        earlier = False
        for number, array in self._arrays.items():
            if array.waits and not earlier:
                array.waits = False  # what it waited for has ended
            wanted = len(array.live) - (0 if array.waits else array.most())
            more = min(self._room(), wanted)
            earlier = True
            if more < 1:
                continue
            limit = more + (0 if array.waits else array.most())
            lines = [f"update jobid={number} arraytaskthrottle={limit}"]
            lines += [f"update jobid={number} dependency="] if array.waits else []
            try:
                call(["scontrol"], lines=lines)
            except (RefusedError, SilentError) as error:
                self._tell(f"scontrol: {error}; fewer jobs run at a time than could")
                return
            array.limit, array.waits = limit, False

    def stop(self, jobs: Mapping[str, Submission]) -> None:
        """Cancel jobs: those that run end with a checkpoint."""
        for job in jobs.values():
            self._resolve(job)
        for chunk in _chunks([job.id for job in jobs.values() if job.id], _MOST_IDS):
            try:
                call_patiently(["scancel", *chunk])
            except (RefusedError, SilentError) as error:
                raise FlairError(f"scancel: {error}") from None
        self._queue = None

    def _tell(self, text: str) -> None:
        """Warn, once for as long as it is the same."""
        if text != self._told:
            log.warning("%s", text)
        self._told = text


def _by_folder(job: Submission) -> str:
    """Return whether a process is at work in a run's folder; SLURM does not know the job."""
    return ACTIVE if holder_of(Path(str(job.details.get("folder", "")))) else ENDED


def _meaning(state: str) -> str:
    """Return what a state of SLURM's is to the pool, also `CANCELLED by 1000` and `PENDING+`."""
    word = (state.split() or [""])[0].rstrip("+")
    if word in _QUEUED:
        return QUEUED
    if word in _ACTIVE:
        return ACTIVE
    return CANCELLED if word == "CANCELLED" else ENDED


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _new_folder(parent: Path) -> Path:
    """Make and return the next numbered folder."""
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(each.name) for each in parent.iterdir() if each.name.isdecimal()]
    for number in itertools.count(max(numbers, default=0) + 1):
        with suppress(FileExistsError):
            folder = parent / str(number)
            folder.mkdir()
            return folder
    raise AssertionError


def _foothold(folder: RunFolder) -> tuple[RunFolder, str | None]:
    """Make a run's folder; return what it holds of an earlier job."""
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        return folder, folder.job.read_text("utf-8")
    except OSError:
        return folder, None


def _take_back(folder: RunFolder, before: str | None) -> None:
    with suppress(OSError):
        if before is not None:
            write_text(folder.job, before)
            return
        folder.job.unlink(missing_ok=True)
        for each in (folder.path, folder.path.parent):
            each.rmdir()  # fails where it holds something


def _environment() -> dict[str, str]:
    """Return what jobs get of this process's environment.

    Of a job or an allocation in which this command runs its numbers of tasks, cores and bytes are
    left out: sbatch would take them for the new job's.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(("SLURM_", "SLURMD_", "SRUN_", JOB))
    }


def _task(place: int, command: JobCommand, attempt: int, environment: dict[str, str]) -> list[str]:
    """Return one task's lines of `commands.sh`; words with credentials go to the environment."""
    words = []
    for number, word in enumerate(command.argv):
        if scrub(word) == word:
            words.append(shlex.quote(word))
            continue
        name = f"FLAIR2_WORD_{place}_{number}"
        environment[name] = word
        words.append(f'"${name}"')
    return [
        f"{place})",
        f"  title={shlex.quote(command.title)} attempt={attempt}",
        f"  record={shlex.quote(str(command.folder.record))}",
        f"  checkpoint={shlex.quote(str(command.folder.last))}",
        f"  words=({' '.join(words)})",
        "  ;;",
    ]


def _case(lines: Iterable[str]) -> Iterator[str]:
    yield "# The command of each task: `words` is what it runs."
    yield 'case "$SLURM_ARRAY_TASK_ID" in'
    yield from lines
    yield "esac"


def _one_word(text: str) -> str:
    """Return a text that scontrol, which knows no escapes there, reads as one word of a line."""
    return re.sub(r"[\s\"'\\]", "_", text)


_SCRIPT: Final = """\
#!/bin/bash
# {submitted}
# One task of this array is one run; what it prints is in the run's folder.

export {job}="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
. {commands} || exit 1  # title, attempt, record, checkpoint, words
where="SLURM job ${job}${{CUDA_VISIBLE_DEVICES:+, GPU $CUDA_VISIBLE_DEVICES}}"
echo "{start}$attempt, $(date '+%Y-%m-%d %H:%M:%S'), $(hostname), $where"
timeout 20 scontrol update jobid="${job}" jobname="$title"

# SLURM signals this shell as well; it waits for the run, which ends with a checkpoint. Traps, since
# what a shell ignores its children ignore.
signalled= woken=
trap 'signalled=143 woken=1' TERM
trap 'signalled=138 woken=1' USR1
trap 'signalled=140 woken=1' USR2

# A line for each start in a row that did not get to a checkpoint before the time limit.
idle={folder}/$SLURM_ARRAY_TASK_ID.idle
[[ $checkpoint -nt $idle ]] && : >"$idle"
touch "$idle"

{setup}
cd {cwd} || exit 1
status=$signalled
if [ -z "$signalled" ]; then
  {srun} "${{words[@]}}" </dev/null &
  run=$!
  while :; do
    woken=
    wait "$run"
    status=$?
    [ -z "$woken" ] && break
  done
fi
[ "$status" -gt 128 ] || exit "$status"

# Ended by a signal: was it SLURM that takes the place away, and not somebody who cancels the job?
info=$(timeout 20 scontrol -o show job "${job}")
value() {{ sed -n "s/.*\\b$1=\\([^ ]*\\).*/\\1/p" <<<"$info"; }}
preempted=$(value PreemptTime) started=$(value StartTime)
again=
if [[ $preempted == [0-9]* && ! $preempted < $started ]]; then
  again=1
elif [[ $(value JobState) == RUNNING ]]; then
  case $status in
    138 | 140) again=1 ;;
    *) grep -qs '"status": "{preempted}"' "$record" && again=1 ;;
  esac
  if [[ $again && ! $checkpoint -nt $idle ]]; then
    echo >>"$idle"
    if [ "$(wc -l <"$idle")" -ge {idle} ]; then
      echo "flair2-exp: no checkpoint before the time limit: raise hydra.launcher.time."
      again=
    fi
  fi
fi
if [ -n "$again" ]; then
  for pause in 1 2 3; do
    if timeout 20 scontrol requeue "${job}"; then
      echo "This job makes room and is queued again; the run resumes from its checkpoint."
      sleep 60  # until SLURM ends this shell
      break
    fi
    sleep "$pause"
  done
fi
exit "$status"
"""
