"""Experiment management for FLAIR #2: config groups in, scored and compared MLflow runs out.

From Python, beside the commands: `open_run` for one run and what it measured, `runs` for a table of
them, `run` to train one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flair2_exp.api import Run, open_run, run, runs
else:

    def __getattr__(name: str) -> object:
        # Nothing is imported before it is asked for: a command that only shows something imports
        # this package, too, and answers at once.
        if name in __all__:
            return getattr(importlib.import_module("flair2_exp.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Run", "__version__", "open_run", "run", "runs"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
