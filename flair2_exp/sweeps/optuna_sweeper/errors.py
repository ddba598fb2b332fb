"""The mistakes a user of the sweeper can make."""

from __future__ import annotations

from hydra.errors import CompactHydraException

from flair2_exp.errors import FlairError


class SweepError(FlairError, CompactHydraException):
    """A search that cannot be run as asked for; the message says what to change.

    Hydra prints a `CompactHydraException` as its message, without a traceback, so that the sweeper
    is as terse in another project as under this package's entry point.
    """
