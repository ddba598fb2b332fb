"""Experiment management for FLAIR #2: config groups in, scored and compared MLflow runs out."""

from __future__ import annotations

__version__ = "0.1.0"
