"""The mistakes that a user can make, each explained in one or two lines, without a traceback.

Everything that a user can get wrong (an override, a combination, a path, a damaged file) raises a
subclass of `FlairError` whose message says what is wrong, with the value, what is expected, and
what to type. The entry point prints the message and exits with the error's status. Anything else is
a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class FlairError(Exception):
    """A mistake that the user can correct; the message says how.

    Attributes:
        status: What the entry point exits with.
    """

    status = 1


class ConfigError(FlairError):
    """A config value, or a combination of values, that no experiment can run with."""


class UsageError(FlairError):
    """A flag that does not exist, or flags that do not go together."""

    status = 2


class DataError(FlairError):
    """A data set that is missing, incomplete, inconsistent or not the expected one."""


class DamagedPatchError(DataError):
    """A file of one patch or one area that cannot be read as what it should be."""


class ModelError(FlairError):
    """A model that cannot be built from its options."""


class CheckpointError(ModelError):
    """A checkpoint that is missing, unsafe to load or of another model."""


class DeviceError(FlairError):
    """A device or a precision that this machine lacks."""


class DivergedError(FlairError):
    """A training whose loss or whose weights are no longer finite."""


class ShortageError(FlairError):
    """A machine that ran out of disk, shared memory or open files while a run was at work."""


class TrackingError(FlairError):
    """A tracking store that does not answer or cannot be written."""


def nearest(word: str, words: Sequence[str]) -> str:
    """Return a hint such as `did you mean a or b?`, or the whole list where nothing is near."""
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(sorted(words))}."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def some(names: Sequence[str], count: int = 3) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
