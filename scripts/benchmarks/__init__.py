"""Benchmarks: what the code costs against figures that it must reach (`scripts/benchmark.py`)."""
