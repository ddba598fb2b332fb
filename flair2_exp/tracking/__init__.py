"""The MLflow run: store, run, provenance, figures.

Importing this package imports neither MLflow nor torch, Lightning or matplotlib; the Lightning
logger is in `flair2_exp.tracking.logger`, the figures in `flair2_exp.tracking.figures`.
"""

from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.provenance import Provenance, collect, scrub
from flair2_exp.tracking.run import NullRun, Run, TrackedRun
from flair2_exp.tracking.store import Store, local_uri, open_store
from flair2_exp.tracking.summary import summary

__all__ = [
    "NullRun",
    "Provenance",
    "Run",
    "Store",
    "TrackedRun",
    "WriterProcess",
    "collect",
    "local_uri",
    "open_store",
    "scrub",
    "summary",
]
