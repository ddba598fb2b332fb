"""A trained network in MLflow's model registry, in the store of its run.

model = mlflow.pyfunc.load_model("models:/NAME/1")
model.predict(images)                       # (B, C, P, P) uint8 → class indices (B, P, P)
"""

from __future__ import annotations

import os
import secrets
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flair2_exp import __version__
from flair2_exp.errors import ConfigError
from flair2_exp.inference.export import single
from flair2_exp.inference.weights import SUFFIX, write_weights
from flair2_exp.lifecycle.assembly import store_at
from flair2_exp.nomenclature import METADATA_VALUES, SATELLITE_BANDS

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

    from flair2_exp.inference.predictor import Member, Predictor

_SECONDS = 60.0
"""In which a server must answer: it is sent the weights."""


def register(predictor: Predictor, name: str, tracking_uri: str = "") -> str:
    """Register a network as a new version of a model; it becomes an artifact of its run.

    Args:
        predictor: Of one run.
        name: Of the model; made where it is new.
        tracking_uri: Of the store; empty: that of the run.

    Returns:
        The version's number.

    Raises:
        UsageError: The predictor is an ensemble, or augments.
        ConfigError: The run has no MLflow run in the store.
        TrackingError: The store does not take it.
    """
    member = single(predictor)
    record = member.stored.record
    uri = tracking_uri or (record.store if record else "")
    if record is None or not record.run_id or not uri:
        raise ConfigError(
            f"{member.stored.name} has no MLflow run, to which a registered model belongs.\n"
            "Name the folder of a run that was tracked (tracking=local or tracking=server)."
        )
    store = store_at(uri, timeout=_SECONDS)
    run = store.find(record.run_id)
    if run is None:
        raise ConfigError(
            f"{store} has no run {record.run_id}.\nSend it there first: flair2-exp "
            f"deliver {member.stored.folder} --tracking-uri {store.address}"
        )
    folder_name = f"model_{secrets.token_hex(4)}"  # each version's stays as it is

    def add(client: MlflowClient, model: Path) -> str:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        client.log_artifacts(run.info.run_id, str(model), folder_name)
        source = f"{run.info.artifact_uri}/{folder_name}"
        made = client.create_model_version(name, source, run.info.run_id)
        return str(made.version)

    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        store.call("preparing the model", lambda _: _save(member, Path(place), model))
        return store.call(f"registering {name!r}", lambda client: add(client, model))


def _save(member: Member, place: Path, model: Path) -> None:
    """Write a folder that MLflow loads as a model."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow.pyfunc

    weights = place / f"model{SUFFIX}"
    write_weights(member, weights)
    with warnings.catch_warnings(record=True):  # of lacking examples: the signature is there
        mlflow.pyfunc.save_model(
            str(model),
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"weights": str(weights)},
            signature=_signature(member),
            pip_requirements=[f"flair2-exp=={__version__}"],  # or MLflow would try to find out
        )


def _signature(member: Member) -> ModelSignature:
    """Return what the model takes and gives, by shapes and types."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    patch, inputs = member.task.spec.patch_size, member.inputs
    shapes: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    if "aerial" in member.reads:
        shapes["image"] = inputs.kind, (-1, len(inputs.bands), patch, patch)
    if "satellite" in member.reads:
        side = inputs.s2_preproc.size
        kind = np.dtype(np.float32 if inputs.s2_preproc.monthly else np.uint16)
        shapes["series"] = kind, (-1, -1, len(SATELLITE_BANDS), side, side)
        shapes["days"] = np.dtype(np.int64), (-1, -1)
    if "metadata" in member.reads:
        shapes["metadata"] = np.dtype(np.float32), (-1, METADATA_VALUES)
    named = list(shapes) != ["image"]
    taken: list[ColSpec | TensorSpec] = [
        TensorSpec(*each, name=name if named else None) for name, each in shapes.items()
    ]
    given: list[ColSpec | TensorSpec] = [TensorSpec(np.dtype(np.uint8), (-1, patch, patch))]
    return ModelSignature(Schema(taken), Schema(given))
