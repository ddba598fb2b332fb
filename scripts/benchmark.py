"""Measure what the code costs: `scripts/benchmark.py NAME [options]`.

Names: data, inference, launch, model, report, sweeper.

Prints each figure, its spread and what it must reach, and last a JSON line; the exit status is 1
where a figure is missed. Run it on a quiet machine.
"""

from __future__ import annotations

import sys

from benchmarks.harness import main
from flair2_exp.streams import run

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
