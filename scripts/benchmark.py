"""Measure what the code costs: `scripts/benchmark.py {data,model,sweeper,report} [options]`.

Prints each figure, its spread and what it must reach, and last a JSON line; the exit status is 1
where a figure is missed. Run it on a quiet machine.
"""

from __future__ import annotations

import sys

from benchmarks.harness import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
