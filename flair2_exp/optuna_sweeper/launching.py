"""What a launcher may offer beside Hydra's `launch`: jobs one by one, as room for them falls free.

`launch` takes a batch and returns when the last of its jobs has ended. A search on a launcher with
these methods draws the next trial as soon as one ends, and finds jobs again that outlived it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from hydra.core.utils import JobReturn


class Command(Protocol):
    """What is started: a job of that number, in a folder by which it is found again."""

    @property
    def number(self) -> int:
        """The job's, which is its trial's."""


class Job(Protocol):
    """A job that is ready to be started."""

    @property
    def command(self) -> Any:
        """What a pool takes, a `Command`."""

    def result(self, ending: Any) -> JobReturn:
        """Return what the job came to, from what `Pool.poll` says of it."""


class Pool(Protocol):
    """The jobs of one command, each a process of its own that is tried again where it is killed."""

    @property
    def interval(self) -> float:
        """Seconds between two calls of `poll`."""

    @property
    def outlives(self) -> bool:
        """Whether jobs go on where the process that started them ends."""

    def capacity(self, command: Any) -> int | None:
        """Return how many jobs like this one run at the same time; None: no limit is known."""

    def lives(self, command: Any) -> bool:
        """Return whether the job waits or runs already, whoever has started it."""

    def add(self, command: Any, *, lost: bool = False) -> bool:
        """Take on a job, or take over the one that another process has started in its folder.

        Args:
            command: The job's.
            lost: Another process has started it perhaps, and died: what the job has come to
                meanwhile is its ending.
        """

    def poll(self) -> Sequence[tuple[Command, Any]]:
        """Start what there is room for; return what has ended since, with what it came to."""

    def until_ended(self) -> AbstractContextManager[None]:
        """Return a context whose exceptions stop all jobs first, but those that outlive it."""


@runtime_checkable
class PoolLauncher(Protocol):
    """A launcher that runs jobs one by one."""

    def pool(self) -> Pool:
        """Return an empty pool for this command's jobs."""

    def command(self, overrides: Sequence[str], number: int, title: str = "") -> Job:
        """Compose a job; `hydra.sweep.subdir` may be among its overrides."""
