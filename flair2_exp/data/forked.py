"""Work on inherited data in many parts, in processes that end with this one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from flair2_exp.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def forked(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, *, died: str
) -> Iterator[Result]:
    """Yield what is made of each item as it is done, in several processes or in this one.

    They are forked: they share what `work` holds, as an index or a reader, instead of building
    their own. Items and results are sent; what `work` raises is raised here.

    Args:
        work: Makes a result of an item.
        items: All of them.
        workers: Processes.
        died: Says that one was killed, and what to do.

    Raises:
        DataError: One was.
    """
    workers = min(workers, len(items))
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, items)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _inherit, (work,)) as pool:
        try:
            for future in as_completed([pool.submit(_do, item) for item in items]):
                yield future.result()
        except BrokenProcessPool:
            raise DataError(died) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_work: list[Callable[[Any], Any]] = []
"""A process's own, inherited."""


def _inherit(work: Callable[[Any], Any]) -> None:
    _work[:] = [work]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(item: Any) -> Any:
    return _work[0](item)
