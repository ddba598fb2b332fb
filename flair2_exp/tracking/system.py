"""How busy the machine is while a run lasts: processor, memory, disk, network, GPUs.

MLflow's monitors measure it (`system/…`, on its page "System metrics"). Its own thread would also
write to the store, past the outbox, and wait for a server for minutes; here the thread only
measures, and the run stores what was measured with its own metrics.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections import deque
from typing import Any, Final

from flair2_exp.errors import ConfigError

_SECONDS: Final = 10.0
"""Between two measurements, as MLflow's own monitor has it."""
_FIRST_SECONDS: Final = 1.0
"""Before the first one."""


def require_psutil() -> None:
    """Refuse `tracking.system_metrics=true` without the package that measures.

    Raises:
        ConfigError: It is not installed.
    """
    if importlib.util.find_spec("psutil") is None:
        raise ConfigError(
            "tracking.system_metrics=true needs the package psutil, which is not installed.\n"
            "Install it with: pip install 'flair2-exp[system-metrics]'"
        )


class SystemMetrics:
    """Measures in a thread until it is stopped.

    Args:
        start: When the run began, in milliseconds since 1970: a measurement's step is the number
            of seconds since then, so that a resumed run continues where it was.
    """

    def __init__(self, start: int) -> None:
        self._start = start
        self._monitors = _monitors()
        self._measured: deque[tuple[str, float, int, int]] = deque()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True, name="system-metrics")
        self._thread.start()

    def _measure(self) -> None:
        for monitor in self._monitors:  # a processor's share is that since the call before
            monitor.collect_metrics()
            monitor.clear_metrics()
        pause = _FIRST_SECONDS
        while not self._stopped.wait(pause):
            self._measure_once()
            pause = _SECONDS
        self._measure_once()

    def _measure_once(self) -> None:
        now = int(time.time() * 1000)
        step = max(1, (now - self._start) // 1000)  # MLflow draws a line from step 1 on
        for monitor in self._monitors:
            monitor.collect_metrics()
            values = monitor.aggregate_metrics()
            monitor.clear_metrics()
            self._measured += [(f"system/{n}", float(v), now, step) for n, v in values.items()]

    def taken(self) -> list[tuple[str, float, int, int]]:
        """Return what was measured since this was last called: name, value, time, step."""
        return [self._measured.popleft() for _ in range(len(self._measured))]

    def stop(self) -> None:
        """End the thread; what it measured can still be taken."""
        self._stopped.set()
        self._thread.join(_SECONDS)


def _monitors() -> list[Any]:
    """Return MLflow's monitors that work on this machine."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]
    monitors = [kind() for kind in kinds]
    try:
        gpus: Any = GPUMonitor
        monitors.append(gpus())
    except Exception as error:  # no NVIDIA GPU, no driver, or no nvidia-ml-py to ask it
        logging.getLogger(__name__).debug("no system metrics of GPUs: %s", error)
    return monitors
