"""A registered network as MLflow loads it: a model from code, which is run and not unpickled.

MLflow copies this file into the model and runs it there; the weights lie beside it as safetensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import set_model
from numpy.typing import NDArray

from flair2_exp.data.sentinel2 import Series
from flair2_exp.inference.patches import Tile
from flair2_exp.inference.predictor import Predictor


def classes_of(predictor: Predictor, model_input: Any) -> NDArray[np.uint8]:
    """Return class indices, (B, P, P), of patches.

    Args:
        predictor: The network.
        model_input: The images (B, C, P, P), not scaled, of a network that reads nothing else;
            otherwise arrays by name, of each patch as `Predictor.predict` takes them: `image`,
            `series` and `days` (preprocessed, and offsets), `metadata`.

    Raises:
        DataError: Something is missing, or of another shape or type.
    """
    arrays = model_input if isinstance(model_input, Mapping) else {"image": model_input}
    made = []
    for at in range(len(next(iter(arrays.values())))):
        tile = _tile({name: each[at] for name, each in arrays.items()})
        made += [each.classes for each in predictor.predictions(predictor.batches([tile]))]
    return np.stack(made)


def _tile(arrays: Mapping[str, NDArray[Any]]) -> Tile:
    series = None
    if "series" in arrays:
        series = Series(arrays["series"], arrays["days"].astype(np.int64), False)
    return Tile(arrays.get("image"), series, arrays.get("metadata"))


# MLflow warns, at each load, of a type that is not a list of records; the signature says the types.
# It has filters of its own, which only a record of warnings keeps from showing them.
with warnings.catch_warnings(record=True):

    class Served(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined, unused-ignore]
        """Predicts patches by their inputs, in the data's own types."""

        def load_context(self, context: Any) -> None:
            """Load the network, on a GPU where there is one."""
            self.predictor = Predictor.from_run(context.artifacts["weights"])

        def predict(
            self, context: Any, model_input: Any, params: Mapping[str, Any] | None = None
        ) -> NDArray[np.uint8]:
            """Return what `classes_of` does; MLflow's own arguments are not used."""
            return classes_of(self.predictor, model_input)


set_model(Served())
