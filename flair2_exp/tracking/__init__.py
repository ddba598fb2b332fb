"""The MLflow run: store, run, provenance, figures.

Importing this package, or any module of it but `logger` (Lightning) and `figures` (NumPy), imports
neither MLflow nor torch, Lightning or matplotlib.
"""
