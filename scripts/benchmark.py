"""Measure what the code costs: `scripts/benchmark.py {data,model,sweeper,report} [options]`.

Prints each figure, its spread and what it must reach, and last a JSON line; the exit status is 1
where a figure is missed. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from flair2_exp.errors import FlairError

BENCHMARKS = ("data", "model", "sweeper", "report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first argument names, with the arguments that follow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of that benchmark")
    arguments = parser.parse_args(argv)
    module = importlib.import_module(f"benchmarks.{arguments.benchmark}")
    try:
        return int(module.main(arguments.options))
    except FlairError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
