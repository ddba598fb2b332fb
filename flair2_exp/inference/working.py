"""The units of a map, predicted by this process and by others beside it."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flair2_exp.errors import DeviceError, FlairError
from flair2_exp.inference.image import Box, raster_settings
from flair2_exp.inference.parts import write_part
from flair2_exp.inference.planning import Plan, Reading
from flair2_exp.inference.rasters import NODATA
from flair2_exp.inference.tiling import Unit
from flair2_exp.locking import file_lock
from flair2_exp.machine import cores
from flair2_exp.progress import Progress

if TYPE_CHECKING:
    from flair2_exp.inference.mapping import MapOptions
    from flair2_exp.inference.predictor import Predictor
    from flair2_exp.inference.stored import StoredRun

log = logging.getLogger(__name__)

T = TypeVar("T")


def _anew(
    kind: type[Predictor],
    runs: Sequence[StoredRun],
    weights: Sequence[float],
    symmetries: str,
    images: Sequence[Path],
    out: Path,
    options: MapOptions,
    division: tuple[int, int],
    device: str,
) -> Plan:
    """Make a plan again in another process, for a device."""
    predictor = kind(runs, weights=weights, symmetries=symmetries, device=device)
    plan = Plan(predictor, images, out, options)
    plan.division = division
    return plan


class Work:
    """The units of a plan, predicted by this process and others beside it.

    Attributes:
        resumed: Units that were there before.
    """

    def __init__(self, plan: Plan, progress: Progress | None) -> None:
        self._plan, self._progress = plan, progress
        every = plan.units()
        self._missing = [unit for unit in every if not plan.parts.has(unit)]
        self.resumed = len(every) - len(self._missing)
        self._total = sum(
            len(each.rows) * len(each.columns) for each in map(plan.with_neighbours, self._missing)
        )
        devices = plan.options.devices
        self._tally: MutableSequence[int] = [0, 0]
        if devices > 1:
            self._tally = multiprocessing.get_context("spawn").RawArray("q", 2 * devices)
        if self.resumed:
            log.info("resuming: %d of %d parts of the map are there", self.resumed, len(every))

    @property
    def predicted(self) -> int:
        """Tiles that went through the network, in all processes."""
        return sum(self._tally[::2])

    @property
    def skipped(self) -> int:
        """Tiles without data, in all processes."""
        return sum(self._tally[1::2])

    def run(self) -> None:
        """Predict what is missing."""
        with _threads_shared(self._plan), self._others():
            predict_units(self._plan, self._missing, self._tally, 0, self._report)

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(min(self.predicted + self.skipped, self._total), self._total)

    @contextmanager
    def _others(self) -> Iterator[None]:
        """Have further processes at work within this context."""
        plan, context = self._plan, multiprocessing.get_context("spawn")
        predictor = plan.predictor
        devices = devices_beside(predictor.device, plan.options.devices)
        stored = [member.stored for member in predictor.members]
        anew = functools.partial(
            _anew, type(predictor), stored, predictor.weights, predictor.symmetries, plan.images,
            plan.out, plan.options, plan.division,
        )  # fmt: skip
        threads = _threads(plan.options.devices)
        processes = [
            context.Process(
                target=_work_beside,
                args=(anew, self._missing, device, threads, self._tally, number),
            )
            for number, device in enumerate(devices, start=1)
        ]
        for process in processes:
            process.start()
        try:
            yield
        finally:
            for process in processes:
                process.terminate()
                process.join()


@contextmanager
def _threads_shared(plan: Plan) -> Iterator[None]:
    """Give this process its share of the processor's threads."""
    import torch

    before = torch.get_num_threads()
    if plan.predictor.device.type == "cpu" and plan.options.devices > 1:
        torch.set_num_threads(_threads(plan.options.devices))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _threads(devices: int) -> int:
    return max(1, cores() // devices)


def devices_beside(own: Any, count: int) -> list[str]:
    """Return the devices of the processes beside this one.

    Raises:
        DeviceError: There are not so many.
    """
    import torch

    if own.type != "cuda":
        if count > cores():
            raise DeviceError(f"devices {count}: this machine has {cores()} processor cores.")
        return ["cpu"] * (count - 1)
    first, present = own.index or 0, torch.cuda.device_count()
    if count > present:
        raise DeviceError(f"devices {count}: this machine has {present} GPUs.")
    return [f"cuda:{each}" for each in range(present) if each != first][: count - 1]


def _work_beside(
    anew: Callable[[str], Plan],
    missing: Sequence[Unit],
    device: str,
    threads: int,
    tally: MutableSequence[int],
    number: int,
) -> None:
    """Predict units in a process of its own; it ends with the one that started it."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; that one ends this one
    if device == "cpu":
        torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def require_parent() -> None:
        if parent is not None and not parent.is_alive():
            os._exit(1)

    with raster_settings():
        plan = anew(device)
        try:
            predict_units(plan, missing, tally, number, require_parent)
        except (FlairError, OSError) as error:  # who started this takes the unit over, and raises
            log.warning("a process beside this one has ended: %s", error)


def predict_units(
    plan: Plan,
    missing: Sequence[Unit],
    tally: MutableSequence[int],
    number: int,
    step: Callable[[], None],
) -> None:
    """Predict those of some units that nobody predicts; then wait for the others' and see.

    A claim is a lock of the kernel's: that of a process that was killed is free again.
    """
    for waits in (False, True):
        for unit in missing:
            if plan.parts.has(unit):
                continue
            with ExitStack() as stack:
                try:
                    stack.enter_context(file_lock(plan.parts.claim(unit), blocking=waits))
                except BlockingIOError:
                    continue
                if not plan.parts.has(unit):
                    strips = _strips(plan, unit, tally, number, step)
                    box = plan.within(unit)
                    write_part(plan.parts.path(unit), strips, plan.layers, box, plan.area.box)


def _strips(
    plan: Plan,
    unit: Unit,
    tally: MutableSequence[int],
    number: int,
    step: Callable[[], None],
) -> Iterator[NDArray[np.uint8]]:
    """Predict a unit; yield the layers' bands, (bands, h, w), of each row of tiles."""
    from flair2_exp.inference.joining import Joiner, empty_bands

    wider, predictor = plan.with_neighbours(unit), plan.predictor
    classes = len(predictor.nomenclature.classes)
    joiner = Joiner(plan.rows, plan.columns, wider, classes, plan.layers, predictor.device)
    for readings in _ahead(plan.readings(wider)):
        row = readings[0].row
        left, top, right, bottom = plan.box(range(row, row + 1), unit.columns)
        strip = empty_bands(plan.layers, bottom - top, right - left)
        for reading, probabilities in _predicted(predictor, readings, plan.options.batch_size):
            if probabilities is None or reading.mapped is None:
                joiner.skip(reading.column)
            else:
                bands = joiner.add(row, reading.column, probabilities)
                x = plan.columns.begin(reading.column) - left
                if x >= 0:
                    mapped = reading.mapped[: bands.shape[1], : bands.shape[2]]
                    strip[:, :, x : x + bands.shape[2]] = np.where(mapped, bands, NODATA)
            tally[2 * number + (probabilities is None)] += 1
            step()
        joiner.end_row()
        if row in unit.rows:
            yield _cut(strip, (left, top, right, bottom), plan.area.box)


def _predicted(
    predictor: Predictor, readings: Sequence[Reading], batch_size: int
) -> Iterator[tuple[Reading, Any]]:
    """Yield each tile with its probabilities, (C, H, W), in order; None where it has no data."""
    batches = _batches([each for each in readings if each.tile is not None], batch_size)
    waiting: list[Any] = []
    for reading in readings:
        if reading.tile is None:
            yield reading, None
            continue
        if not waiting:
            tiles = [each.tile for each in next(batches) if each.tile is not None]
            waiting = list(predictor.probabilities(predictor.batches(tiles)))
        yield reading, waiting.pop(0)


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _ahead(values: Iterator[T]) -> Iterator[T]:
    """Yield values of which the next one is made meanwhile, in a thread."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = pool.submit(next, values, None)
            yield value


def _cut(strip: NDArray[np.uint8], box: Box, within: Box) -> NDArray[np.uint8]:
    """Return what of a strip lies within another box."""
    rows = slice(max(0, within[1] - box[1]), max(0, within[3] - box[1]))
    columns = slice(max(0, within[0] - box[0]), max(0, within[2] - box[0]))
    return strip[:, rows, columns]
