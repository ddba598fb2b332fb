"""`python -m flair2_exp`, and the console script `flair2-exp`."""

from __future__ import annotations

import gc
import sys
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("click", "yaml", "omegaconf", "hydra", "numpy", "torch", "lightning", "mlflow")
"""What no command can do without; imported much later, where it is used."""


def main() -> None:
    """Run this process's command line, as `cli.main`; say so where the environment is not active.

    Whoever forgets to activate it starts an interpreter without our dependencies. Does not return.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(f"flair2-exp: this Python ({sys.executable}) has no {missing[0]}: {_remedy()}.")
    # Importing torch, Lightning and MLflow makes half a million objects that stay. To look through
    # them for garbage at every 700 new ones takes a fifth of the start.
    gc.set_threshold(50_000, 20, 50)
    status: object = None
    try:
        from flair2_exp.cli.main import main

        main()
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:  # while that is imported: it answers all later ones
        print("flair2-exp: interrupted", file=sys.stderr)
        status = 130
    except BaseException:  # a bug's traceback
        sys.excepthook(*sys.exc_info())
        status = 1
    from flair2_exp.compat import end_process

    end_process(status)


def _remedy() -> str:
    """Return what to type: to activate the checkout's environment, to make it, or to install."""
    root = Path(__file__).resolve().parents[1]
    activate = root / ".venv" / "bin" / "activate"
    if activate.is_file():
        here = activate.relative_to(root) if Path.cwd() == root else activate
        return f"activate the environment with `source {here}`"
    if (root / "Makefile").is_file():
        return f"make the environment in {root} with `make setup`, then `source .venv/bin/activate`"
    return "install what it needs with `pip install flair2-exp`"


if __name__ == "__main__":
    main()
