"""A registered network as MLflow loads it: a model from code, which is run and not unpickled.

MLflow copies this file into the model and runs it there; the weights lie beside it as safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import set_model
from numpy.typing import NDArray

from flair2_exp.data.sentinel2 import Series
from flair2_exp.inference.predictor import Predictor, Tile


class Served(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined, unused-ignore]
    """Predicts patches by their inputs, in the data's own types."""

    def load_context(self, context: Any) -> None:
        """Load the network, on a GPU where there is one."""
        self.predictor = Predictor.from_run(context.artifacts["weights"])

    # MLflow warns, at each load, of hints that are not lists; the signature says the types.
    def predict(self, context, model_input, params=None) -> NDArray[np.uint8]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Return class indices, (B, P, P).

        Args:
            context: MLflow's; not used.
            model_input: The images (B, C, P, P), not scaled, of a network that reads nothing else;
                otherwise arrays by name, of each patch as `Predictor.predict` takes them: `image`,
                `series` and `days` (preprocessed, and offsets), `metadata`.
            params: Not used.

        Raises:
            DataError: Something is missing, or of another shape or type.
        """
        arrays: Mapping[str, NDArray[Any]] = {"image": model_input}
        if isinstance(model_input, Mapping):
            arrays = model_input
        patches = len(next(iter(arrays.values())))
        tiles = [_tile({name: each[at] for name, each in arrays.items()}) for at in range(patches)]
        classes = [
            prediction.classes
            for tile in tiles
            for prediction in self.predictor.predictions(self.predictor.batches([tile]))
        ]
        return np.stack(classes)


def _tile(arrays: Mapping[str, NDArray[Any]]) -> Tile:
    series = None
    if "series" in arrays:
        series = Series(arrays["series"], arrays["days"].astype(np.int64), False)
    return Tile(arrays.get("image"), series, arrays.get("metadata"))


set_model(Served())
