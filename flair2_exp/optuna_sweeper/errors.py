"""The mistakes a user of the sweeper can make."""

from __future__ import annotations

from hydra.errors import CompactHydraException


class SweepError(CompactHydraException):
    """A search that cannot be run as configured; the message says what to change.

    Hydra prints a `CompactHydraException` as its message, without a traceback.
    """
