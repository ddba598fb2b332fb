"""The GPUs of this machine that a command may use, by their own listing; torch is not imported."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Mapping
from typing import Final

_LINE: Final = re.compile(
    r"^\s*(?P<kind>GPU|MIG).*\(UUID: (?P<uuid>[A-Za-z0-9/-]+)\)", re.MULTILINE
)
_SECONDS: Final = 30.0  # the driver of a machine of many GPUs wakes up slowly


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that a process of this environment sees.

    Args:
        environment: `CUDA_VISIBLE_DEVICES` in it is respected: numbers, UUIDs or their beginnings,
            MIG instances. As CUDA reads it: the first entry that is not a device ends the list.

    Returns:
        By UUID, as `CUDA_VISIBLE_DEVICES` takes them, in the order of CUDA's numbers. Of a GPU that
        is divided (MIG) its instances. Empty without a driver. Where the driver's listing is
        missing and the variable is not, the variable's entries.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    entries = None if chosen is None else [each.strip() for each in chosen.split(",")]
    devices = listed()
    if entries is None:
        return [uuid for gpu, instances in devices for uuid in instances or [gpu]]
    if not devices:
        return _until_no_device(entries)
    found = []
    names = [uuid for gpu, instances in devices for uuid in (gpu, *instances)]
    for entry in entries:
        if entry.isdecimal() and int(entry) < len(devices):
            gpu, instances = devices[int(entry)]
            found.append(instances[0] if instances else gpu)  # CUDA sees one instance of a number
            continue
        matching = [name for name in names if entry and name.startswith(entry)]
        if len(matching) != 1:
            break
        found.append(matching[0])
    return list(dict.fromkeys(found))


def _until_no_device(entries: list[str]) -> list[str]:
    devices = []
    for entry in entries:
        if not (entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))):
            break
        devices.append(entry)
    return devices


@functools.cache
def listed() -> list[tuple[str, list[str]]]:
    """Return each GPU's UUID with those of its MIG instances, as `nvidia-smi -L` lists them.

    Asked once per process: several parts of a sweep want to know.
    """
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    devices: list[tuple[str, list[str]]] = []
    for match in _LINE.finditer(answer.stdout if answer.returncode == 0 else ""):
        if match["kind"] == "GPU":
            devices.append((match["uuid"], []))
        elif devices:
            devices[-1][1].append(match["uuid"])
    return devices
