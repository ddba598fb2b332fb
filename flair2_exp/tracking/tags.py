"""The names of all MLflow tags that the package sets or reads: the one table of them."""

from __future__ import annotations

from enum import StrEnum


class Tag(StrEnum):
    """An MLflow tag by its name; a member is its name as a string."""

    # What tables of runs group and compare by; a `run.record.RunRecord` holds them.
    ROW = "flair2.row"
    """The leaderboard row that a run belongs to."""
    SEED = "flair2.seed"
    IDENTITY = "flair2.identity"
    """16 hexadecimal digits over all that decides the result (`config.identity`)."""
    DATASET = "flair2.dataset"
    FINGERPRINT = "flair2.dataset_fingerprint"
    """Of the data set's files and split (`data.fingerprint`)."""
    TEST_FINGERPRINT = "flair2.test_fingerprint"
    """Of the test part alone: equal where other patches train."""
    SPLIT = "flair2.split"
    METRIC = "flair2.metric"
    """How the score is computed; scores of different settings are never compared."""
    MODEL = "flair2.model"
    READS = "flair2.reads"
    """The inputs of the network, as `aerial,satellite`."""
    COMPAT = "flair2.compat"
    MEMBERS = "flair2.members"
    """The runs whose networks it scores, where it trains none itself: an ensemble, or a run with
    test-time augmentation; as `utt seed 1 (identity) x 0.5; ...`."""
    FOLDER = "flair2.folder"
    """Where the run's or the sweep's folder is."""

    # What a run belongs to.
    KIND = "flair2.kind"
    """`sweep` or `study`, on the parent of many runs; absent on a run."""
    SWEEP = "flair2.sweep"
    SWEEP_KEY = "flair2.sweep_key"
    """Of a sweep's parent, which is looked up by it."""
    STUDY = "flair2.study"
    TRIAL = "flair2.trial"

    # What became of it.
    BEST_CHECKPOINT = "flair2.best_checkpoint"
    BEST_TRIAL = "flair2.best_trial"
    PRUNED = "flair2.pruned"
    PREEMPTED = "flair2.preempted"
    """On a run whose cluster has ended it and starts it again; it stays RUNNING until then."""
    ERROR = "flair2.error"
    ENDED = "flair2.ended"
    """Why a run was closed by another process than its own."""
    REBUILT = "flair2.rebuilt"
    """`begun` and then `complete`, on a run that was made again from its folder."""
    CHANGED_PARAMS = "flair2.changed_params"
    """Parameters that a resumed run has other values of; MLflow keeps the first ones."""

    # Where it comes from.
    VERSION = "flair2.version"
    CODE_CHANGED = "flair2.code_changed"
    """Digests of this package's files when the job was submitted and when it ran."""
    DIRTY = "flair2.dirty"
    """Whether the checkout differs from its commit."""
    PACKAGES = "flair2.packages"
    """Versions of Python and of the packages that compute, as `python==3.11.9; torch==2.4.1`."""
    MACHINE = "flair2.machine"
    """Its name, and its GPUs or its processor."""
    HOST = "flair2.host"
    PID = "flair2.pid"
    PROCESS = "flair2.process"
    """These three name the process that writes the run (`process.WriterProcess`)."""

    # MLflow's own.
    PARENT = "mlflow.parentRunId"
    DESCRIPTION = "mlflow.note.content"
    USER = "mlflow.user"
    SOURCE_NAME = "mlflow.source.name"
    SOURCE_TYPE = "mlflow.source.type"
    COMMIT = "mlflow.source.git.commit"
    BRANCH = "mlflow.source.git.branch"
    EXPERIMENT_KIND = "mlflow.experimentKind"
    """Of an experiment."""
    VIEW = "mlflow.sharedViewState.flair2"
    """Of an experiment: a view of its runs table that MLflow's pages offer (`view`)."""
