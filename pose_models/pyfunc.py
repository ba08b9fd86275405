"""The `python_function` flavour: images in, a table out, in a notebook or served over HTTP.

MLflow imports this module by its name, which every saved model holds: it must not move. The only
one of this package that needs MLflow and pandas.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from pose_models.hardware import keep_freed_memory
from pose_models.predictor import CONFIG_FILE, Predictor, PredictorConfig
from pose_models.seal import read_sealed

# Names of the column of a table that holds its images.
COLUMNS = ("image", "images", "path", "file")
# Set by MLflow's server in its own process.
_SERVED = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


class PredictionError(MlflowException):
    """An error whose message stays one sentence.

    MLflow's server would put the whole request in front of it: megabytes of base64.
    """

    @property
    def message(self) -> str:
        """What is wrong."""
        return self._message

    @message.setter
    def message(self, value: str) -> None:
        if not hasattr(self, "_message"):
            self._message = value


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> "ImageTable":
    """What MLflow calls to load a model; `path` is its data folder."""
    data = Path(path)
    device = str((model_config or {}).get("device") or "cpu")
    # Before the weights are unpickled.
    config = PredictorConfig.from_dict(read_sealed(data / CONFIG_FILE))
    keep_freed_memory()
    model = mlflow.pytorch.load_model(str(data.parent))
    return ImageTable(Predictor(model, config, device))


class ImageTable:
    """A model as MLflow calls it."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row per image, with the columns of `Predictor.columns`.

        Args:
            data: one image or several, of any kinds that `pose_models.inputs.to_source` takes; a
                batch of arrays; or a table with a column `image` (any name if it has no other).

        Raises:
            PredictionError: an image cannot be read. Over HTTP, status 400.
        """
        images = images_of(data)
        # A request must not find out what files there are on the server.
        allow_paths = os.environ.get(_SERVED) != "true"
        try:
            answer = self.predictor.predict_all(images, allow_paths=allow_paths, refuse=_refuse)
        except PredictionError:
            raise
        # MLflow's server would send the traceback of any other error to whoever asked.
        except Exception:
            logging.getLogger(__name__).exception("the model failed")
            message = "the model failed on these images; its log says why"
            raise PredictionError(message, INTERNAL_ERROR) from None
        return pd.DataFrame(self.predictor.columns(answer))

    def get_raw_model(self) -> Predictor:
        """What computes, for callers that want no table."""
        return self.predictor


def images_of(data: Any) -> list[Any]:
    """The images in whatever a caller passed.

    Raises:
        PredictionError: there are none, or it is unclear where.
    """
    if isinstance(data, pd.DataFrame):
        data = _column(data)
    if isinstance(data, Mapping) and set(data) != {"b64"}:
        if len(data) != 1:
            raise _wrong(f"images must be a list, or one column of them, found {len(data)} columns")
        (data,) = data.values()
    if isinstance(data, pd.Series):
        data = data.tolist()
    if isinstance(data, np.ndarray) and data.dtype.kind in "OUS":
        data = data.tolist()
    images = list(data) if _is_batch(data) else [data]
    if not images:
        raise _wrong("images must be one or more, found an empty list")
    return images


def _column(frame: pd.DataFrame) -> pd.Series:
    names = [name for name in frame.columns if name in COLUMNS] or list(frame.columns)
    if len(names) != 1:
        raise _wrong(
            f"a table must have one column of images ({', '.join(COLUMNS)}), found "
            f"{', '.join(map(str, frame.columns[:5])) or 'none'}"
        )
    return frame[names[0]]


def _is_batch(data: Any) -> bool:
    """Whether it is several images: a list of anything but numbers and rows, or 4 dimensions."""
    if hasattr(data, "ndim"):
        return bool(data.ndim == 4)
    if not isinstance(data, list | tuple):
        return False
    depth, first = 0, data
    while isinstance(first, list | tuple) and first:
        depth, first = depth + 1, first[0]
    return depth >= 4 or not isinstance(first, int | float)


def _refuse(row: int, reason: str) -> PredictionError:
    return _wrong(f"image {row + 1} cannot be read: {reason}")


def _wrong(message: str) -> PredictionError:
    return PredictionError(message, INVALID_PARAMETER_VALUE)
