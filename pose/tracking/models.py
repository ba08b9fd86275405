"""Registered models as they are used: brought here and made ready to predict."""

import dataclasses
import os
import warnings

import mlflow
from torch import nn

from pose.errors import InputError, one_line
from pose.tracking.flavors import LOADER
from pose.tracking.store import connect, shown_uri
from pose_models.predictor import Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that can predict.

    Attributes:
        uri: as it was asked for.
        identity: differs for every model that was ever logged.
    """

    uri: str
    identity: str
    predictor: Predictor


def load_model(uri: str, device: str) -> LoadedModel:
    """Bring a model here, with the code that it was saved with. It runs code from the model.

    Args:
        uri: `models:/...`, `runs:/...` or a folder.
        device: as torch names it.

    Raises:
        InputError: there is no such model, it takes no images, or the store does not answer.
    """
    if uri.partition(":")[0] in ("models", "runs"):
        # MLflow alone would ask a server that is away for minutes.
        connect()
    # As in `Store`: bars for single small files.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with warnings.catch_warnings():
            # MLflow about its own type hints, when it imports its pyfunc module.
            warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")
            found = mlflow.pyfunc.load_model(uri, model_config={"device": device})
    # MLflow passes on what stores, the file system, pickle and torch raise.
    except Exception as error:
        raise InputError(
            f"model must be one that can be loaded, such as models:/pose-ensemble/1, got {uri!r} "
            f"in {shown_uri(mlflow.get_tracking_uri())}: {one_line(error)}"
        ) from error
    if found.loader_module != LOADER:
        raise InputError(
            f"model must be one that takes images, got {uri!r}, which was registered before 0.2: "
            "vote again (mlflow run . -e ensemble), or load it with mlflow.pytorch.load_model"
        )
    return LoadedModel(uri=uri, identity=found.metadata.model_uuid, predictor=found.get_raw_model())


def load_module(uri: str) -> nn.Module:
    """The PyTorch module of a model, on the CPU. It runs code from the model.

    Raises:
        InputError: there is none.
    """
    try:
        module: nn.Module = mlflow.pytorch.load_model(uri, map_location="cpu")
    # As above.
    except Exception as error:
        raise InputError(
            f"model must be a PyTorch module in MLflow, got {uri!r}: {one_line(error)}"
        ) from error
    return module
