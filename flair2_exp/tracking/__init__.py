"""The MLflow run: store, run, provenance, figures.

Importing this package imports neither MLflow nor torch, Lightning or matplotlib; the Lightning
logger is in `flair2_exp.tracking.logger`, the figures in `flair2_exp.tracking.figures`.
"""

from flair2_exp.tracking.process import WriterProcess
from flair2_exp.tracking.provenance import Provenance, collect
from flair2_exp.tracking.run import Run, open_run
from flair2_exp.tracking.scrub import scrub
from flair2_exp.tracking.store import Store, local_uri, open_store
from flair2_exp.tracking.summary import summary
from flair2_exp.tracking.tags import Tag

__all__ = [
    "Provenance",
    "Run",
    "Store",
    "Tag",
    "WriterProcess",
    "collect",
    "local_uri",
    "open_run",
    "open_store",
    "scrub",
    "summary",
]
